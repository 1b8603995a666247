"""What the commands do, as functions: the command line, the demo and the tests call these and nothing beside them."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from . import __version__, checkpoint, export, quality
from .core import LINEAR, VELOCITY
from .engines import manifest as manifests
from .engines.manifest import BOUNDS, Bound, Manifest
from .errors import InvalidArtefact, InvalidInput
from .export.build import GUIDANCE_LIMIT, Order
from .loading import load
from .models import baked
from .sources import open_source
from .spec import Spec
from .training import classifier
from .training import pairs as pairs_files
from .training.batch import paired, unpaired
from .training.data import load_dataset
from .training.pairs import PairsSpec
from .training.recipes import STUDENTS, TEACHERS, recipe
from .training.trainer import provenance, train

JUDGE_FIELDS = ("steps", "batch", "seed")


def train_teacher(name: str, data: str, folder: Path, **changes: Any) -> bool:
    """Train a teacher on a data set; False when the folder holds the finished run already."""
    _expect_one_of("recipe", name, TEACHERS)
    dataset = load_dataset(data)
    setting = replace(recipe(name, data, **changes), data=dataset.name)  # a folder by its name, wherever it lies
    network = setting.network
    assert network is not None  # every teacher's recipe names its network
    if network.shape != dataset.shape or network.classes != dataset.classes:
        raise InvalidInput(
            f"data {data!r} has shape {dataset.shape} and {dataset.classes} classes, "
            f"the recipe's network has {network.shape} and {network.classes}"
        )
    guided = setting.label_dropout > 0 and dataset.classes > 0
    spec = Spec(network, LINEAR.name, null_label=guided, provenance=provenance(setting))
    return train(setting, spec, unpaired(dataset.images, dataset.labels), folder)


def train_judge(folder: Path, data: str, **changes: Any) -> bool:
    """Train the classifier that judges pictures of a data set; False when the folder holds one already.

    `changes` are of its steps, batch and seed.
    """
    for name, value in changes.items():
        if name not in JUDGE_FIELDS or not isinstance(value, int) or value < (name != "seed"):
            raise InvalidInput(
                f"{name} is {value} for a classifier; expected only {', '.join(JUDGE_FIELDS)}, 1 or more"
            )
    if classifier.is_classifier(folder):
        return False
    classifier.train(folder, load_dataset(data), **changes)
    return True


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
) -> int:
    """Have a teacher, an engine or checkpoint or a folder of diffusers', make `count` pairs; the number of shards made.

    Without a solver, ab2 where that runs, or the teacher's own. Under torchrun each process makes its share.
    """
    rank, world = pairs_files.place()
    if world > 1 and device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    flow = open_source(source, threads, device)
    network, origin = flow.spec.network, flow.spec
    instantaneous = origin.solver == "euler" and origin.prediction == VELOCITY and network.times == 1
    solver = solver or ("ab2" if instantaneous else origin.solver)
    spec = PairsSpec(flow.identity, network.shape, network.classes, count, seed, solver, steps, guidance, shard, batch)
    plan: dict[str, Any] = {"steps": steps, "solver": solver, "guidance": guidance, "seed": seed}

    def teacher(first: int, labels: np.ndarray) -> np.ndarray:
        asked = labels.tolist() if spec.classes else None
        return flow.sample(len(labels), first=first, label=asked, **plan).states

    told = {
        "pyflow": __version__,
        "source": source.resolve().name,
        "backend": flow.backend,
        "path": origin.path,
        "prediction": origin.prediction,
        "teacher": origin.provenance,
    }
    return pairs_files.generate(teacher, spec, folder, origin=told, rank=rank, world=world)


def distil(name: str, teacher: Path, pairs: Path, folder: Path, **changes: Any) -> bool:
    """Train a student on its teacher's pairs, starting from the teacher's weights."""
    _expect_one_of("recipe", name, STUDENTS)
    model, teacher_spec = checkpoint.load(teacher)
    tensors, made = pairs_files.load(pairs)
    network = teacher_spec.network
    if made.shape != network.shape or made.classes != network.classes:
        raise InvalidInput(
            f"the pairs in {pairs} have shape {made.shape} and {made.classes} classes, "
            f"the teacher {teacher} has {network.shape} and {network.classes}"
        )
    setting = recipe(name, teacher_spec.provenance.get("data", "digits"), **changes)
    origin = {"teacher": checkpoint.weights_sha256(teacher), "pairs": asdict(made) | {"shape": list(made.shape)}}
    spec = replace(teacher_spec, null_label=False, provenance={**provenance(setting), **origin})
    return train(setting, spec, paired(tensors), folder, start=model)


def export_engine(
    source: Path,
    folder: Path,
    backend: str,
    order: Order | None = None,
    *,
    psnr: float | None = None,
    judge: Path | None = None,
    data: str = "digits",
    model: nn.Module | None = None,
) -> bool:
    """Export a checkpoint; False when `folder` already is the engine that was ordered, of these weights.

    `psnr` is a bound of one's own in dB. With `judge`, the folder of a classifier of `data`, the certificate keeps
    the distances of the engine's pictures and of the checkpoint's. `model` is the module of a network of your own.
    """
    order = order or Order()
    _expect_one_of("--to", backend, export.BUILDERS)
    spec = checkpoint.load_spec(source)
    order.check(spec)
    referee = None if judge is None else quality.Judge.of(judge, data)
    if referee:
        referee.refuse_misfit(spec)
    bound = BOUNDS[order.precision] if psnr is None else Bound(psnr=psnr)
    distances = referee.settings(order) if referee else {}
    if manifests.is_engine(folder) and _is_engine_of(source, folder, backend, order, bound, distances):
        return False
    judging = None
    if referee:
        reference = load(source, model=model)
        reference.plan(order.steps[0], order.solver, order.grid)
        judging = partial(quality.change, referee, reference, order)
    export.export(source, folder, backend, order, bound=bound, judge=judging, model=model)
    return True


def bake(source: Path, folder: Path, guidance: float) -> None:
    """Publish a guided checkpoint at one guidance as an ordinary one, which samples and exports."""
    if not 0 < guidance <= GUIDANCE_LIMIT:
        raise InvalidInput(f"guidance is {guidance}; expected a number above 0 and at most {GUIDANCE_LIMIT}")
    if folder.resolve() == source.resolve():
        raise InvalidInput(f"--out is {str(folder)!r}, the guided checkpoint; expected another folder, that is kept")
    model, spec = checkpoint.load(source)
    made = baked(model, guidance)
    origin = {"guidance": guidance, "baked_from": checkpoint.weights_sha256(source)}
    told = {**spec.provenance, **origin}
    checkpoint.save(folder, made, replace(spec, network=made.spec, null_label=False, provenance=told))


def _is_engine_of(
    source: Path, folder: Path, backend: str, order: Order, bound: Bound, distances: dict[str, Any]
) -> bool:
    """Whether the folder is what was ordered; a damaged one counts as none, so that an export mends it."""
    try:
        manifest = manifests.read(folder)
        manifests.payload(folder, manifest)
    except InvalidArtefact as error:
        tqdm.write(f"exported again: {error}")
        return False
    made = manifest.backend, manifest.what, manifest.precision, manifest.plans, manifest.weights_sha256
    plans = order.plans(checkpoint.load_spec(source))
    proved = manifest.proved
    return (
        made == (backend, order.what, order.precision, plans, checkpoint.weights_sha256(source))
        and _runs_on(manifest, order.device)
        and proved.bound == bound
        and distances.items() <= proved.distances.items()
    )


def _runs_on(manifest: Manifest, device: str) -> bool:
    """Whether the engine was made for this device; ONNX graphs run on both."""
    on_gpu = manifest.backend == "tensorrt" or "gpu" in manifest.requires
    return manifest.backend == "onnx" or on_gpu == (device == "cuda")


def describe(source: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; an engine's manifest does that for it, and needs no torch to be read."""
    return {
        "checkpoint": str(source),
        "weights_sha256": checkpoint.weights_sha256(source),
        **checkpoint.load_spec(source).to_json(),
    }


def _expect_one_of(what: str, name: str, known: Any) -> None:
    if name not in known:
        raise InvalidInput(f"{what} is {name!r}; expected one of {', '.join(known)}")
