"""What the pictures of a set look like to an extractor: streamed moments a class, and some features kept as they are.

Those of real pictures are cached, under the hash of the pictures, the extractor and how many features are kept,
and the device that looked: figures of two devices are compared, the last digits of their features may differ.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import checkpoint, native
from .artefact import json_bytes, sha256
from .errors import InvalidArtefact, InvalidInput
from .extractors import Extractor, cache_folder
from .metrics import Moments, frechet_distance, kernel_distance
from .neighbours import manifold, radii
from .training.data import Dataset

KEPT = 10_000  # features that the kernel distance and the neighbours compare: memory does not grow with the set
FOLDED = 4096  # features that wait before they join their classes' moments, which costs D^2 a class
BATCH = 256
RECORD, ARRAYS = "reference.json", "reference.safetensors"
FIGURES = ("frechet", "kernel", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Look:
    """What a whole set looked like: moments by class, kept features, and the share of labels read as they are."""

    classes: tuple[Moments, ...]
    kept: np.ndarray
    accuracy: float | None

    @property
    def whole(self) -> Moments:
        return reduce(Moments.merged, self.classes)


@dataclass(frozen=True)
class Reference(Look):
    """Real pictures, with the balls around their kept features, and the hash of all that they are."""

    balls: np.ndarray
    sha256: str


class Tally:
    """A set as it comes in, batch by batch; its memory does not grow with the number of batches."""

    def __init__(self, size: int, classes: int, keep: int = KEPT) -> None:
        nothing = Moments.of(np.empty((0, size)))
        self._classes, self._keep = [nothing] * max(1, classes), keep
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._kept: list[np.ndarray] = []
        self._read: list[int] = []
        self.count = 0

    def add(
        self, features: np.ndarray, labels: np.ndarray, read: np.ndarray | None, chosen: np.ndarray | None = None
    ) -> None:
        """`chosen` tells which of them may be kept; without it, those that come first."""
        self._waiting.append((features, labels))
        self.count += len(features)
        left = self._keep - sum(map(len, self._kept))
        kept = features[:left] if chosen is None else features[chosen][:left]
        if len(kept):
            self._kept.append(kept.copy())
        if read is not None:
            self._read.append(int((read == labels).sum()))
        if sum(len(waiting) for waiting, _ in self._waiting) >= FOLDED:
            self._fold()

    def look(self) -> Look:
        self._fold()
        accuracy = sum(self._read) / self.count if self._read else None
        return Look(tuple(self._classes), np.concatenate(self._kept), accuracy)

    def _fold(self) -> None:
        if not self._waiting:
            return
        features, labels = (np.concatenate(parts) for parts in zip(*self._waiting))
        self._waiting.clear()
        for label in np.unique(labels):
            self._classes[label] = self._classes[label].merged(Moments.of(features[labels == label]))


def figures(made: Look, real: Reference, seed: int = 0) -> dict[str, float]:
    """The distance of a set from the real pictures, in each of `FIGURES`."""
    near = manifold(real.kept, made.kept, real.balls)
    return {
        "frechet": frechet_distance(made.whole, real.whole),
        "kernel": kernel_distance(made.kept, real.kept, seed=seed),
        **near._asdict(),
    }


def pictures_of(data: Dataset, part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """uint8 (N, height, width, channels) and labels, a batch at a time; what is no picture is refused."""
    if len(data.shape) != 3:
        raise InvalidInput(f"{part} of {data.name} has the shape {data.shape}; expected pictures, not points")
    for start in range(0, len(data.images), BATCH):
        images = data.images[start : start + BATCH]
        yield _pixels(images, f"{part} of {data.name}", start), data.labels[start : start + BATCH].numpy()


def _pixels(images: Tensor, place: str, first: int) -> np.ndarray:
    if images.dtype == torch.uint8:
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    finite = torch.isfinite(images).flatten(1).all(1)
    if not finite.all():
        picture = first + int((~finite).nonzero()[0])
        raise InvalidInput(f"{place}, picture {picture} holds a NaN or an infinity; expected values from -1 to 1")
    return native.to_uint8(images.contiguous().numpy())


def reference(data: Dataset, part: str, extractor: Extractor) -> Reference:
    """From the cache, or looked at now and kept there; a damaged entry is made again."""
    if len(data.images) <= extractor.size:
        raise InvalidInput(
            f"{part} of {data.name} has {len(data.images)} pictures; a covariance of {extractor.size} features needs "
            f"{extractor.size + 1} or more"
        )
    key = _key(data, part, extractor)
    folder = cache_folder() / f"reference-{key[:32]}-{extractor.device}"
    if (folder / RECORD).is_file():
        try:
            return _read(folder, key)
        except (InvalidArtefact, KeyError) as error:
            tqdm.write(f"looked at again: {error}")
    look = _look(data, part, extractor)
    found = Reference(look.classes, look.kept, look.accuracy, radii(look.kept), key)
    _write(folder, found)
    return found


def _look(data: Dataset, part: str, extractor: Extractor) -> Look:
    count = len(data.images)
    tally = Tally(extractor.size, data.classes)
    chosen = np.zeros(count, bool)  # evenly out of all: a folder's pictures come class by class
    chosen[np.linspace(0, count - 1, min(KEPT, count)).astype(int)] = True
    with tqdm(total=count, desc=f"{part} of {data.name}", unit="picture") as bar:
        for images, labels in pictures_of(data, part):
            seen = extractor.see(images)
            tally.add(seen.features, labels, seen.labels, chosen[tally.count : tally.count + len(labels)])
            bar.update(len(labels))
    return tally.look()


def _key(data: Dataset, part: str, extractor: Extractor) -> str:
    content = hashlib.sha256()
    for images, labels in pictures_of(data, part):
        content.update(images.tobytes())
        content.update(labels.tobytes())
    told = [content.hexdigest(), list(data.shape), data.classes, extractor.identity, KEPT]
    return sha256(json_bytes(told))


def _write(folder: Path, found: Reference) -> None:
    arrays = {
        **arrays_of(found.classes),
        "kept": found.kept,
        "balls": found.balls,
        "accuracy": np.array([] if found.accuracy is None else [found.accuracy]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    checkpoint.save_arrays(folder, RECORD, {"format": checkpoint.FORMAT, "key": found.sha256}, {ARRAYS: tensors})


def _read(folder: Path, key: str) -> Reference:
    arrays = {name: tensor.numpy() for name, tensor in checkpoint.load_arrays(folder, RECORD, ARRAYS).items()}
    accuracy = arrays["accuracy"].tolist()
    return Reference(moments_in(arrays), arrays["kept"], accuracy[0] if accuracy else None, arrays["balls"], key)


def arrays_of(classes: Sequence[Moments]) -> dict[str, np.ndarray]:
    """Moments as they are written, which `moments_in` reads."""
    return {f"{name}s": np.array([getattr(one, name) for one in classes]) for name in ("count", "mean", "scatter")}


def moments_in(arrays: Mapping[str, np.ndarray]) -> tuple[Moments, ...]:
    return tuple(Moments(*parts) for parts in zip(arrays["counts"].tolist(), arrays["means"], arrays["scatters"]))
