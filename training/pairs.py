"""Pairs (noise, label, picture): what a teacher makes of known noise, and what its student learns from.

A folder of `shard-00000.npy` files with `manifest.json`. Noise and labels are not stored: both follow from (seed,
index). Each shard's hash is in the manifest, so a broken shard is noticed, and only that one is made again.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyflow.artefact import json_bytes, read_json, read_verified, sha256, write_file
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.noise import normal

FORMAT = 1
MANIFEST = "manifest.json"

# (first picture, labels) to the pictures' final states, float32
Teacher = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PairsSpec:
    """What decides every byte of the pairs."""

    teacher: str  # sha256 of what made them
    shape: tuple[int, ...]
    classes: int
    count: int
    seed: int
    solver: str
    steps: int
    guidance: float
    shard: int = 512

    def __post_init__(self) -> None:
        if self.count < 1 or self.shard < 1:
            raise InvalidInput(f"pairs: count is {self.count}, shard {self.shard}; expected 1 or more of each")

    def labels(self, first: int, count: int) -> np.ndarray:
        """Classes in turn, so that each has its share."""
        return np.arange(first, first + count) % max(1, self.classes)


def generate(teacher: Teacher, spec: PairsSpec, folder: Path) -> int:
    """Make the shards that are missing or broken; the number made. Killed at any point, it goes on from there."""
    hashes = _known_shards(spec, folder)
    starts = range(0, spec.count, spec.shard)
    missing = [start for start in starts if not _intact(folder, _name(spec, start), hashes)]
    bar = tqdm(
        total=spec.count, initial=spec.count - sum(_size(spec, start) for start in missing), desc="pairs", unit="pair"
    )
    for start in missing:
        size = _size(spec, start)
        content = BytesIO()
        np.save(content, teacher(start, spec.labels(start, size)), allow_pickle=False)
        write_file(folder / _name(spec, start), content.getvalue())
        hashes[_name(spec, start)] = sha256(content.getvalue())
        write_file(folder / MANIFEST, json_bytes({"format": FORMAT, "spec": asdict(spec), "sha256": hashes}))
        bar.update(size)
    bar.close()
    return len(missing)


def load(folder: Path) -> tuple[tuple[Tensor, Tensor, Tensor], PairsSpec]:
    """All pairs as tensors (noise, labels, pictures); every shard's hash is checked."""
    spec, hashes = _manifest(folder)
    pictures = []
    for start in range(0, spec.count, spec.shard):
        name = _name(spec, start)
        if name not in hashes:
            raise InvalidArtefact(f"{folder} has no {name} yet; run `pyflow pairs` again to finish it")
        pictures.append(np.load(BytesIO(read_verified(folder, name, hashes[name])), allow_pickle=False))
    noise = normal(spec.seed, 0, spec.count, int(np.prod(spec.shape)), 0).reshape(spec.count, *spec.shape)
    labels = torch.from_numpy(spec.labels(0, spec.count))
    return (torch.from_numpy(noise), labels, torch.from_numpy(np.concatenate(pictures))), spec


def _known_shards(spec: PairsSpec, folder: Path) -> dict[str, str]:
    if not (folder / MANIFEST).exists():
        return {}
    found, hashes = _manifest(folder)
    if found != spec:
        changed = [f"{name} {old!r}" for name, old in asdict(found).items() if old != getattr(spec, name)]
        raise InvalidInput(f"{folder} holds other pairs ({', '.join(changed)}); name another folder or remove it")
    return hashes


def _manifest(folder: Path) -> tuple[PairsSpec, dict[str, str]]:
    data: Any = read_json(folder / MANIFEST)
    try:
        if data["format"] != FORMAT:
            raise InvalidArtefact(f"{folder / MANIFEST} has format {data['format']!r}; this pyflow reads {FORMAT}")
        return PairsSpec(**{**data["spec"], "shape": tuple(data["spec"]["shape"])}), {**data["sha256"]}
    except (KeyError, TypeError, InvalidInput) as error:
        raise InvalidArtefact(f"{folder / MANIFEST} is not a pairs manifest ({error}); make the pairs again") from error


def _intact(folder: Path, name: str, hashes: dict[str, str]) -> bool:
    try:
        return name in hashes and bool(read_verified(folder, name, hashes[name]))
    except InvalidArtefact as error:
        tqdm.write(f"made again: {error}")
        return False


def _name(spec: PairsSpec, start: int) -> str:
    return f"shard-{start // spec.shard:05d}.npy"


def _size(spec: PairsSpec, start: int) -> int:
    return min(spec.shard, spec.count - start)
