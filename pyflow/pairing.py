"""How a teacher makes pairs: its pictures of known noise and labels, with or without what masks keep of the data."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .core import VELOCITY
from .errors import InvalidInput
from .sampler import Known
from .sources import open_source
from .spec import Spec
from .training import pairs as pairs_files
from .training.data import Dataset, load_dataset, values
from .training.holes import pictures
from .training.pairs import PairsSpec


def make_pairs(
    source: Path,
    folder: Path,
    *,
    count: int,
    steps: int,
    guidance: float,
    seed: int,
    solver: str | None = None,
    device: str = "cpu",
    threads: int = 0,
    shard: int = PairsSpec.shard,
    batch: int = PairsSpec.batch,
    masks: str | None = None,
    masked: float | None = None,
    data: str | None = None,
) -> int:
    """Have a teacher, an engine or checkpoint or a folder of diffusers', make `count` pairs; the number of shards made.

    Without a solver, ab2 where that runs, or the teacher's own. Under torchrun each process makes its share. With
    `masks`, a kind of them, this share of the pairs (`masked`, half if none is named) keeps pixels of `data`.
    """
    rank, world = pairs_files.place()
    if world > 1 and device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    flow = open_source(source, threads, device)
    network, origin = flow.spec.network, flow.spec
    instantaneous = origin.solver == "euler" and origin.prediction == VELOCITY and network.times == 1
    solver = solver or ("ab2" if instantaneous else origin.solver)
    kept = _kept(flow.spec, data) if masks is not None else None
    for name, given in (("masked", masked), ("data", data)):
        if kept is None and given is not None:
            raise InvalidInput(f"{name} is {given!r}; expected none without masks: name their kind, --masks mixed")
    spec = PairsSpec(
        flow.identity,
        network.shape,
        network.classes,
        count,
        seed,
        solver,
        steps,
        guidance,
        shard,
        batch,
        masks,
        (0.5 if masked is None else masked) if kept else None,
        kept.sha256 if kept else None,
    )
    plan: dict[str, Any] = {"steps": steps, "solver": solver, "guidance": guidance, "seed": seed}
    of_label = kept.of_label() if kept else []

    def known(first: int, count: int) -> Known | None:
        holes = spec.holes(first, count)
        if kept is None or holes is None:
            return None
        return Known(values(kept.images[pictures(of_label, seed, first, count)]).numpy(), holes)

    def teacher(first: int, labels: np.ndarray) -> np.ndarray:
        asked = labels.tolist() if spec.classes else None
        return flow.sample(len(labels), first=first, label=asked, known=known(first, len(labels)), **plan).states

    told = {
        "pyflow": __version__,
        "source": source.resolve().name,
        "backend": flow.backend,
        "path": origin.path,
        "prediction": origin.prediction,
        "teacher": origin.provenance,
    } | ({"data": kept.name} if kept else {})
    return pairs_files.generate(teacher, spec, folder, origin=told, rank=rank, world=world)


def _kept(spec: Spec, data: str | None) -> Dataset:
    """The data whose pictures masked pairs of this teacher keep."""
    if not spec.network.sees_mask:
        raise InvalidInput(
            "masks are named, and the teacher's network sees none; expected what `pyflow train inpaint` makes"
        )
    if data is None:
        raise InvalidInput("--data is missing; expected the data whose pictures these pairs keep where they are masked")
    dataset, network = load_dataset(data), spec.network
    if (dataset.shape, dataset.classes) != (network.shape, network.classes):
        raise InvalidInput(
            f"data {data!r} has shape {dataset.shape} and {dataset.classes} classes, the teacher's network has "
            f"{network.shape} and {network.classes}: name the data that it learnt from"
        )
    empty = [label for label, numbers in enumerate(dataset.of_label()) if not len(numbers)]
    if empty:
        raise InvalidInput(f"data {data!r} has no picture of class {empty[0]}; expected some of each, to be kept")
    return dataset
