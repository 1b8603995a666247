"""Pairs (noise, label, picture): what a teacher makes of known noise, and what its student learns from.

Pairs with masks have the pixels of a picture of the data wherever their mask keeps them, bit for bit, and its label.

A folder of `shard-00000.npy` files, a record beside each, `shard-00000.json`, with its hash, and `manifest.json`, which
says what the pairs are. Noise, labels and masks are not stored: they follow from (seed, index). A broken shard is
noticed, and only that one is made again. Every file has one writer, so several processes may make one folder.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyflow import masks, native
from pyflow.artefact import json_bytes, read_json, read_verified, refuse_blocked, sha256, sweep_files, write_file
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.noise import PICTURE_LIMIT, SEED_LIMIT
from pyflow.records import from_json, refuse_other_types

from . import holes

FORMAT = 2
MANIFEST = "manifest.json"
OWN = re.compile(r"\.?(manifest\.json|shard-\d+\.(npy|json))(\.[0-9a-f]{8}\.tmp)?")

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
    batch: int = 64  # pictures a call of the teacher: most backends round a sum as the batch is cut
    masks: str | None = None  # their kind; without one nothing is kept, and the next two say nothing
    masked: float | None = None  # the share of the pairs with a mask
    data: str | None = None  # sha256 of the data whose pictures are kept

    def __post_init__(self) -> None:
        refuse_other_types(self)
        sizes = len(self.shape) in (1, 3) and min(self.shape) >= 1
        known, told = [*masks.KINDS, *masks.GROUPS], (self.masks is None, self.masked is None, self.data is None)
        for name, fits, expected in (
            ("count", 1 <= self.count <= PICTURE_LIMIT, f"1 or more, at most {PICTURE_LIMIT}"),
            ("shard", self.shard >= 1, "1 or more"),
            ("batch", self.batch >= 1, "1 or more"),
            ("steps", self.steps >= 1, "1 or more"),
            ("seed", 0 <= self.seed < SEED_LIMIT, f"0 to {SEED_LIMIT - 1}"),
            ("guidance", math.isfinite(self.guidance), "a finite number"),
            ("classes", self.classes >= 0, "0 or more"),
            ("shape", sizes, "the size of a point, or of a picture: channels, height, width"),
            ("masks", self.masks is None or self.masks in known, f"one of {', '.join(known)}"),
            ("masks", self.masks is None or len(self.shape) == 3, "none: points have no holes"),
            ("masks", len({*told}) == 1, "them with masked and data, or none of the three"),
            ("masked", self.masked is None or 0 <= self.masked <= 1, "0 to 1, a share of the pairs"),
        ):
            if not fits:
                raise InvalidInput(f"{name} of the pairs is {getattr(self, name)}; expected {expected}")

    @property
    def record(self) -> dict[str, Any]:
        """What is said of them; of pairs without masks nothing of masks, as before there were any."""
        told = asdict(self) | {"shape": list(self.shape)}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def identity(self) -> str:
        """What a shard's record names, so that shards of other pairs never pass for these."""
        return sha256(json_bytes(self.record))

    def labels(self, first: int, count: int) -> np.ndarray:
        """Classes in turn, so that each has its share."""
        return np.arange(first, first + count) % max(1, self.classes)

    def holes(self, first: int, count: int) -> np.ndarray | None:
        """The masks of these pairs, where they have any."""
        if self.masks is None or self.masked is None:
            return None
        return holes.holes(self.masks, self.masked, self.shape[1:], self.seed, first, count)

    def starts(self, rank: int = 0, world: int = 1) -> range:
        """The first pictures of the shards that are `rank`'s."""
        return range(rank * self.shard, self.count, world * self.shard)

    def size(self, start: int) -> int:
        return min(self.shard, self.count - start)

    def name(self, start: int) -> str:
        return f"shard-{start // self.shard:05d}.npy"


def place() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun tells."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def generate(
    teacher: Teacher,
    spec: PairsSpec,
    folder: Path,
    *,
    origin: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
) -> int:
    """Make the shards that are missing or broken; the number made. Killed at any point, it goes on from there.

    `origin` is for readers: it stands in the manifest as the first run told it. Of `world` processes, each makes every
    `world`-th shard, whatever is there: they don't look at the folder at the same moment.
    """
    _refuse_other(spec, folder)
    starts = spec.starts(rank, world)
    for name in (MANIFEST,) * (world == 1) + tuple(_record(folder, spec, start).stem + ".*" for start in starts):
        sweep_files(folder, name)  # of this process's own files alone: another may be writing its own
    missing = [start for start in starts if not _intact(spec, start, folder)]
    total, left = (sum(map(spec.size, some)) for some in (starts, missing))
    name = "pairs" if world == 1 else f"pairs, {rank + 1} of {world}"
    with tqdm(total=total, initial=total - left, desc=name, unit="pair", position=rank) as bar:
        for start in missing:
            content = BytesIO()
            np.save(content, _pictures(teacher, spec, start, bar), allow_pickle=False)
            _open(spec, origin or {}, folder)  # not before: an order that the teacher refuses leaves nothing
            write_file(folder / spec.name(start), content.getvalue())
            record = {"pairs": spec.identity, "sha256": sha256(content.getvalue())}
            write_file(_record(folder, spec, start), json_bytes(record))
    _open(spec, origin or {}, folder)
    return len(missing)


def _pictures(teacher: Teacher, spec: PairsSpec, start: int, bar: "tqdm[Any]") -> np.ndarray:
    made = []
    end = start + spec.size(start)
    for first in range(start, end, spec.batch):
        labels = spec.labels(first, min(spec.batch, end - first))
        made.append(teacher(first, labels))
        bar.update(len(labels))
    return np.concatenate(made)


def load(folder: Path) -> tuple[tuple[Tensor, ...], PairsSpec]:
    """All pairs as tensors (noise, labels, pictures), and masks where they have them; every shard's hash is checked."""
    spec = read_spec(folder)
    for start in spec.starts():  # before memory is taken for as many as the manifest says
        _recorded(spec, start, folder)
    noise, pictures = (torch.empty(spec.count, *spec.shape) for _ in range(2))
    for start in spec.starts():
        content = _verified(spec, start, folder)
        part = slice(start, start + spec.size(start))
        shard = np.load(BytesIO(content), allow_pickle=False)
        if shard.shape != (spec.size(start), *spec.shape) or shard.dtype != np.float32:
            raise InvalidArtefact(
                f"{folder / spec.name(start)} holds {shard.dtype} {shard.shape}; expected float32 "
                f"{(spec.size(start), *spec.shape)}: make the pairs again"
            )
        pictures[part] = torch.from_numpy(shard)
        drawn = native.normal(spec.seed, start, spec.size(start), int(np.prod(spec.shape)), 0)
        noise[part] = torch.from_numpy(drawn).reshape(noise[part].shape)
    drawn_masks = spec.holes(0, spec.count)
    masked = () if drawn_masks is None else (torch.from_numpy(drawn_masks),)
    return (noise, torch.from_numpy(spec.labels(0, spec.count)), pictures, *masked), spec


def read_spec(folder: Path) -> PairsSpec:
    path, data = folder / MANIFEST, read_json(folder / MANIFEST)
    if not isinstance(data, dict) or "format" not in data:
        raise InvalidArtefact(f"{path} is not a pairs manifest; name the folder of pairs, or make the pairs again")
    if data["format"] != FORMAT:
        raise InvalidArtefact(
            f"{path} has format {data['format']!r}; this pyflow reads {FORMAT}: make the pairs again, in another folder"
        )
    try:
        made: PairsSpec = from_json(PairsSpec, data.get("spec"), MANIFEST)
    except InvalidArtefact as error:
        raise InvalidArtefact(f"{path} is not a pairs manifest ({error}); make the pairs again") from error
    return made


def data_of(folder: Path) -> str | None:
    """The name of the data that the teacher of these pairs was trained on, where that is known."""
    told: Any = read_json(folder / MANIFEST)
    for name in ("origin", "teacher", "data"):
        told = told.get(name) if isinstance(told, dict) else None
    return told if isinstance(told, str) else None


def _open(spec: PairsSpec, origin: Mapping[str, Any], folder: Path) -> None:
    """Write the manifest, or refuse another's. Processes that start together write the same bytes."""
    if not (folder / MANIFEST).exists():
        write_file(folder / MANIFEST, json_bytes({"format": FORMAT, "spec": spec.record, "origin": origin}))
    _refuse_other(spec, folder)


def _refuse_other(spec: PairsSpec, folder: Path) -> None:
    if (folder / MANIFEST).exists():
        found = read_spec(folder)
        changed = [f"{name} {old!r}" for name, old in asdict(found).items() if old != getattr(spec, name)]
        if changed:
            raise InvalidInput(f"{folder} holds other pairs ({', '.join(changed)}); name another folder or remove it")
    elif folder.is_dir():
        strangers = sorted(path.name for path in folder.iterdir() if not OWN.fullmatch(path.name))
        if strangers:
            raise InvalidInput(f"{folder} holds {', '.join(strangers[:3])}; expected pairs, or a name that is free")
    else:
        refuse_blocked(folder)


def _recorded(spec: PairsSpec, start: int, folder: Path) -> str:
    """The hash that a shard's record tells."""
    if not _record(folder, spec, start).exists():
        raise InvalidArtefact(f"{folder} has no {spec.name(start)} yet; run `pyflow pairs` again to finish it")
    record: Any = read_json(_record(folder, spec, start))
    if not isinstance(record, dict) or record.get("pairs") != spec.identity:
        raise InvalidArtefact(f"{folder / spec.name(start)} belongs to other pairs than its folder; make it again")
    return str(record.get("sha256", "none"))


def _verified(spec: PairsSpec, start: int, folder: Path) -> bytes:
    return read_verified(folder, spec.name(start), _recorded(spec, start, folder))


def _intact(spec: PairsSpec, start: int, folder: Path) -> bool:
    if not _record(folder, spec, start).exists():
        return False
    try:
        return bool(_verified(spec, start, folder))
    except InvalidArtefact as error:
        tqdm.write(f"made again: {error}")
        return False


def _record(folder: Path, spec: PairsSpec, start: int) -> Path:
    return (folder / spec.name(start)).with_suffix(".json")
