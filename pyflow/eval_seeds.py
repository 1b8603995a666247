"""The seeds of an evaluation's row: kept beside its file until the row is done, and pooled for distances by class."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint
from .artefact import sweep
from .errors import InvalidArtefact
from .metrics import Moments, frechet_distance, jackknife
from .references import Look, arrays_of, moments_in

RECORD, ARRAYS, FIGURE = "seed.json", "seed.safetensors", "figure."


@dataclass
class Clock:
    """Seconds of a seed's parts; `batches` are those of the sampler alone, a picture."""

    batches: list[float]
    denoiser: float = 0.0
    extractor: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Seed:
    """What the pictures of a seed came to; without moments where they are too few for a distance by class."""

    figures: dict[str, float]
    classes: tuple[Moments, ...]
    clock: Clock


Ask = Callable[[int], Seed]


@dataclass(frozen=True)
class Store:
    """Where the finished seeds of a row lie, so that an evaluation that is killed repeats one seed at most.

    They are read again for the distances by class too: memory holds one seed beside all together.
    """

    folder: Path
    key: str  # of the request and the plan

    def asking(self, measure: Ask) -> Ask:
        """`measure`, but for the seeds that lie here."""

        def ask(seed: int) -> Seed:
            place = self._place(seed)
            if (place / RECORD).is_file():
                try:
                    return _read(place)
                except (InvalidArtefact, KeyError) as error:
                    tqdm.write(f"measured again: {error}")
            found = measure(seed)
            _write(place, found)
            return found

        return ask

    def count(self, seeds: Sequence[int]) -> int:
        return sum((self._place(seed) / RECORD).is_file() for seed in seeds)

    def remove(self, seeds: Sequence[int]) -> None:
        """The folder goes with the last of its seeds; those of other requests stay."""
        for place in map(self._place, seeds):
            sweep(place)
            shutil.rmtree(place, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _place(self, seed: int) -> Path:
        return self.folder / f"{self.key[:16]}-{seed}"


def _write(place: Path, found: Seed) -> None:
    clock = found.clock
    arrays = {
        **arrays_of(found.classes),
        "batches": np.array(clock.batches),
        "spent": np.array([clock.denoiser, clock.extractor, clock.seconds]),
        **{FIGURE + name: np.array([value]) for name, value in found.figures.items()},
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    checkpoint.save_arrays(place, RECORD, {"format": checkpoint.FORMAT}, {ARRAYS: tensors})


def _read(place: Path) -> Seed:
    arrays = {name: tensor.numpy() for name, tensor in checkpoint.load_arrays(place, RECORD, ARRAYS).items()}
    figures = {name.removeprefix(FIGURE): value.item() for name, value in arrays.items() if name.startswith(FIGURE)}
    return Seed(figures, moments_in(arrays), Clock(arrays["batches"].tolist(), *arrays["spent"].tolist()))


def frechet_by_class(ask: Ask, seeds: Sequence[int], real: Look) -> dict[str, dict[str, float | None]]:
    """The distance of each class over the pictures of all seeds, with its jackknife over the seeds.

    A seed alone has few pictures of a class, whose distance is then mostly that number's bias. Left out are classes
    that have no more pictures than features, and intervals whose figures without a seed would be of such a class.
    """
    size, classes = real.kept.shape[1], len(real.classes)
    pooled = [Moments.of(np.empty((0, size)))] * classes
    for seed in seeds:
        pooled = [whole.merged(part) for whole, part in zip(pooled, ask(seed).classes)]
    known = [label for label in range(len(pooled)) if min(pooled[label].count, real.classes[label].count) > size]
    left_out: dict[int, list[float]] = {label: [] for label in known}
    for seed in seeds if len(seeds) > 1 else ():
        parts = ask(seed).classes
        for label in known:
            rest = pooled[label].without(parts[label])
            if rest.count > size:
                left_out[label].append(frechet_distance(rest, real.classes[label]))
    return {
        str(label): jackknife(
            frechet_distance(pooled[label], real.classes[label]),
            left_out[label] if len(left_out[label]) == len(seeds) else (),
        )
        for label in known
    }
