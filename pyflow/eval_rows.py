"""One row of an evaluation: a plan's pictures as they are sampled, seen and counted, seed by seed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .extractors import Extractor
from .metrics import interval
from .references import Look, Reference, Tally, figures, frechet_by_class
from .sampler import Flow

Grid = str | Sequence[float]


@dataclass(frozen=True)
class Plan:
    """How every picture of a row is asked for."""

    steps: int
    guidance: float = 1.0
    solver: str | None = None
    grid: Grid = "uniform"

    def asked(self) -> dict[str, Any]:
        return {"steps": self.steps, "guidance": self.guidance, "solver": self.solver, "grid": self.grid}


@dataclass
class Clock:
    """Seconds of a row's parts; `batches` are those of the sampler alone, a picture."""

    batches: list[float]
    denoiser: float = 0.0
    extractor: float = 0.0

    def per_image(self) -> float:
        """The median of the batches after the first, which is cold."""
        return float(np.median(self.batches[1:] or self.batches))


def labels_in_turn(flow: Flow, first: int, count: int) -> np.ndarray:
    """Picture i is asked for class i, and so on round; zeros where there are no classes."""
    return np.arange(first, first + count) % max(1, flow.spec.network.classes)


def asked_labels(flow: Flow, labels: np.ndarray) -> list[int] | None:
    return labels.tolist() if flow.spec.network.classes else None


def look_at(
    flow: Flow,
    plan: Plan,
    extractor: Extractor,
    *,
    num_samples: int,
    seed: int,
    batch: int,
    clock: Clock | None = None,
    shown: Callable[[int], object] | None = None,
) -> Look:
    """What `num_samples` pictures of a seed look like; no more than a batch of them is there at once."""
    clock = clock or Clock([])
    tally = Tally(extractor.size, flow.spec.network.classes)
    for first in range(0, num_samples, batch):
        count = min(batch, num_samples - first)
        labels = labels_in_turn(flow, first, count)
        before = time.perf_counter()
        output = flow.sample(count, first=first, seed=seed, label=asked_labels(flow, labels), **plan.asked())
        sampled = time.perf_counter()
        seen = extractor.see(output.images)
        clock.extractor += time.perf_counter() - sampled
        clock.batches.append((sampled - before) / count)
        clock.denoiser += float(output.denoiser_seconds.sum())
        tally.add(seen.features, labels, seen.labels)
        if shown:
            shown(count)
    return tally.look()


def row_of(
    flow: Flow,
    plan: Plan,
    extractor: Extractor,
    real: Reference,
    *,
    num_samples: int,
    seeds: Sequence[int],
    batch: int,
    shown: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """The figures of a plan, with their intervals over the seeds, and what they took."""
    clock, started = Clock([]), time.perf_counter()
    found: list[dict[str, float]] = []
    classes = None
    for seed in seeds:
        look = look_at(flow, plan, extractor, num_samples=num_samples, seed=seed, batch=batch, clock=clock, shown=shown)
        found.append(figures(look, real, seed))
        if look.accuracy is not None:
            found[-1]["label_accuracy"] = look.accuracy
        classes = look.classes if classes is None else tuple(a.merged(b) for a, b in zip(classes, look.classes))
    assert classes is not None
    by_class = frechet_by_class(Look(classes, look.kept, None), real)
    seconds = time.perf_counter() - started
    return {
        "steps": plan.steps,
        "calls": len(flow.plan(plan.steps, plan.solver, plan.grid)),
        "grid": plan.grid,
        **{name: interval([one[name] for one in found]) for name in found[0]},
        "per_class": {label: {"frechet": value} for label, value in by_class.items()},
        "images_per_second": 1 / clock.per_image(),
        "ms_per_image": 1e3 * clock.per_image(),
        "seconds": seconds,
        "denoiser_share": clock.denoiser / seconds,
        "extractor_share": clock.extractor / seconds,
    }
