"""One row of an evaluation: a plan's pictures as they are sampled, seen and counted, seed by seed."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .eval_seeds import Ask, Clock, Seed, frechet_by_class
from .extractors import Extractor
from .metrics import interval
from .references import Look, Reference, Tally, figures
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


def labels_in_turn(flow: Flow, first: int, count: int) -> np.ndarray:
    """Picture i is asked for class i, and so on round; zeros where there are no classes."""
    return np.arange(first, first + count) % max(1, flow.spec.network.classes)


def asked_labels(flow: Flow, labels: np.ndarray) -> list[int] | None:
    return labels.tolist() if flow.spec.network.classes else None


def a_class(num_samples: int, flow: Flow) -> int:
    """How many pictures of a class each seed has, where there are classes to be told apart."""
    classes = flow.spec.network.classes
    return num_samples // classes if classes > 1 else 0


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
    kept: Callable[[Ask], Ask] = functools.cache,
) -> dict[str, Any]:
    """The figures of a plan, with their intervals over the seeds, and what they took; `kept` is asked twice a seed."""
    few = a_class(num_samples, flow) * len(seeds) <= extractor.size

    def measured(seed: int) -> Seed:
        clock, started = Clock([]), time.perf_counter()
        look = look_at(flow, plan, extractor, num_samples=num_samples, seed=seed, batch=batch, clock=clock, shown=shown)
        found = figures(look, real, seed)
        if look.accuracy is not None:
            found["label_accuracy"] = look.accuracy
        clock.seconds = time.perf_counter() - started
        return Seed(found, () if few else look.classes, clock)

    ask = kept(measured)
    found, clocks = zip(*((one.figures, one.clock) for one in map(ask, seeds)))
    batches = [spent for clock in clocks for spent in clock.batches]
    per_image = float(np.median(batches[1:] or batches))  # the first is cold
    seconds = sum(clock.seconds for clock in clocks)
    return {
        "steps": plan.steps,
        "calls": len(flow.plan(plan.steps, plan.solver, plan.grid)),
        "grid": plan.grid,
        **{name: interval([one[name] for one in found]) for name in found[0]},
        "per_class": {label: {"frechet": distance} for label, distance in frechet_by_class(ask, seeds, real).items()},
        "images_per_second": 1 / per_image,
        "ms_per_image": 1e3 * per_image,
        "seconds": seconds,
        "denoiser_share": sum(clock.denoiser for clock in clocks) / seconds,
        "extractor_share": sum(clock.extractor for clock in clocks) / seconds,
    }
