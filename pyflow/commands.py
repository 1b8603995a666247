"""What the commands do, as functions: the command line, the demo and the tests call these and nothing beside them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from . import checkpoint, export, quality
from .artefact import refuse_blocked
from .engines import manifest as manifests
from .engines.manifest import BOUNDS, Bound, Manifest
from .errors import InvalidArtefact, InvalidInput
from .export.build import GUIDANCE_LIMIT, Order
from .loading import load
from .models import baked
from .pairing import make_pairs as make_pairs
from .spec import MLP, Spec, refuse_other_inputs
from .training import classifier
from .training import pairs as pairs_files
from .training.batch import Draw, endless, mask_bank, paired, unpaired
from .training.beginnings import begin, refuse_other_data, refuse_other_words, seeing_masks, spec_of
from .training.data import LAWS, Dataset, load_dataset, name_of
from .training.distributed import join
from .training.objectives import refuse_source
from .training.recipes import STUDENTS, TEACHERS, TUNED, Recipe, recipe
from .training.trainer import train


def train_teacher(
    name: str,
    data: str | None,
    folder: Path,
    *,
    size: str | None = None,
    config: Path | None = None,
    start: Path | None = None,
    judge: Path | None = None,
    device: str = "cpu",
    watch: int = 500,
    logs: Sequence[str] = (),
    **changes: Any,
) -> bool:
    """Train on a data set; False when the folder holds the finished run already.

    `changes` are fields of the recipe, over those of `config`. `start` is the checkpoint that gives the first weights,
    `judge` the folder of a classifier. `device`, `watch` and `logs` are the trainer's.
    """
    setting = teacher(name, data, start, size=size, config=config, **changes)
    if name in TUNED and start is None:
        raise InvalidInput(
            f"--start is missing; recipe {name!r} expected a checkpoint to go on from: `pyflow train cfm` makes one"
        )
    refuse_source(setting.objective, pairs=False)
    dataset = load_dataset(setting.data)
    network = setting.network
    refuse_other_data(setting, dataset.shape, dataset.classes, start)
    law = LAWS.get(setting.data)
    setting = replace(setting, data=dataset.name)  # a folder by its name, wherever it lies
    spec = spec_of(setting, **({"start": checkpoint.weights_sha256(start)} if start else {}))
    where = join(device).device  # the whole set lies where it is trained on
    masks = mask_bank(network.shape, setting.seed).to(where) if network.sees_mask else None
    pictures = dataset.images.to(where), dataset.labels.to(where)
    draw = endless(law) if law else unpaired(*pictures, setting.flip, masks, setting.options.masked)
    return _train(setting, spec, draw, folder, start, judge, device=device, watch=watch, logs=logs)


def teacher(
    name: str,
    data: str | None = None,
    start: Path | None = None,
    *,
    size: str | None = None,
    config: Path | None = None,
    **changes: Any,
) -> Recipe:
    """The recipe of what learns from data; one that fine-tunes has the network of its start, and sees masks too."""
    _refuse_engine("--start", start)
    base = seeing_masks(start) if name in TUNED and start else {}
    setting = recipe(name, data, size=size, file=config, base=base, known=TEACHERS | TUNED, **changes)
    if start:
        refuse_other_words(start, setting)
    return setting


def _train(
    setting: Recipe,
    spec: Spec,
    draw: Draw,
    folder: Path,
    start: Path | None,
    judge: Path | None,
    **told: Any,
) -> bool:
    network = setting.network
    begun = begin(start, network) if start else None
    like = Dataset(setting.data, torch.empty(0, *network.shape), torch.empty(0, dtype=torch.int64), network.classes)
    referee = classifier.load(judge, like) if judge else None
    return train(setting, spec, draw, folder, begun, judge=referee, **told)


def train_judge(folder: Path, data: str, **changes: Any) -> bool:
    """Train the classifier that judges pictures of a data set; False when the folder holds that one already.

    `changes` are of its steps, batch and seed; a finished one is held to those that are named.
    """
    for name, value in changes.items():
        if name not in classifier.SETTING or not isinstance(value, int) or value < (name != "seed"):
            raise InvalidInput(
                f"{name} is {value} for a classifier; expected only {', '.join(classifier.SETTING)}, 1 or more"
            )
    refuse_blocked(folder)
    if classifier.is_classifier(folder):
        classifier.refuse_another(folder, {"data": name_of(data), **changes})
        return False
    shown = load_dataset(data)
    if len(shown.shape) != 3 or shown.classes < 2:
        raise InvalidInput(f"data is {data!r}; a classifier expected pictures of two classes or more")
    classifier.train(folder, shown, **changes)
    return True


def distil(
    name: str,
    teacher: Path | None,
    pairs: Path,
    folder: Path,
    *,
    size: str | None = None,
    config: Path | None = None,
    judge: Path | None = None,
    device: str = "cpu",
    watch: int = 500,
    logs: Sequence[str] = (),
    **changes: Any,
) -> bool:
    """Train a student on a teacher's pairs, from the weights of `teacher` or, without one, from random ones.

    Path, prediction and solver are the recipe's, whatever the teacher's were. The rest is as for `train_teacher`.
    """
    setting = student(name, teacher, pairs, size=size, config=config, **changes)
    refuse_source(setting.objective, pairs=True)
    made = pairs_files.read_spec(pairs)
    network = setting.network
    if made.shape != network.shape or made.classes != network.classes:
        raise InvalidInput(
            f"the pairs in {pairs} have shape {made.shape} and {made.classes} classes, "
            f"{f'the teacher {teacher}' if teacher else 'the network'} has {network.shape} and {network.classes}"
        )
    if network.sees_mask != (made.masks is not None):
        have, sees = "none" if made.masks is None else repr(made.masks), "one" if network.sees_mask else "none"
        raise InvalidInput(
            f"the masks of the pairs in {pairs} are {have}, and the student's network sees {sees}; expected pairs of "
            "`pyflow pairs --masks` for a teacher of `pyflow train inpaint`, or no masks in either"
        )
    origin = {"teacher": checkpoint.weights_sha256(teacher)} if teacher else {}
    spec = spec_of(setting, **origin, pairs=made.record)
    where = join(device).device
    draw = paired([tensor.to(where) for tensor in pairs_files.load(pairs)[0]])
    return _train(setting, spec, draw, folder, teacher, judge, device=device, watch=watch, logs=logs)


def student(
    name: str,
    teacher: Path | None = None,
    pairs: Path | None = None,
    *,
    size: str | None = None,
    config: Path | None = None,
    **changes: Any,
) -> Recipe:
    """A student's recipe, with the network of its teacher or, without one, a network that fits the pairs."""
    data: str | None = None
    base: dict[str, Any] = {}
    _refuse_engine("--teacher", teacher)
    if teacher:
        spec = checkpoint.load_spec(teacher)
        refuse_other_inputs(spec)
        data, base = spec.provenance.get("data"), {"network": spec.network}
    elif pairs:
        made, data = pairs_files.read_spec(pairs), pairs_files.data_of(pairs) or "pairs"
        points = len(made.shape) == 1
        base = {"network": MLP(made.shape)} if points else {"network.shape": made.shape}
        base["network.classes"] = made.classes
        if made.masks is not None:
            base["network.extra"] = made.shape[0] + 1
    setting = recipe(name, data, size=size, file=config, base=base, known=STUDENTS, **changes)
    if setting.flip:
        raise InvalidInput("flip is True; expected False: noise and picture of a pair belong together")
    return setting


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
    _refuse_engine("the source", source)
    refuse_blocked(folder)
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
    _refuse_engine("the source", source)
    model, spec = checkpoint.load(source)
    options = spec.provenance.get("options")
    largest = options.get("guidance") if isinstance(options, dict) else None
    if spec.network.guided and isinstance(largest, (int, float)) and not 1 <= guidance <= largest:
        raise InvalidInput(
            f"guidance is {guidance:g}; expected 1 to {largest:g}, which the network was told in training"
        )
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
    spec = checkpoint.load_spec(source)
    plans = order.plans(spec)
    proved = manifest.proved
    return (
        made == (backend, order.what, order.precision, plans, checkpoint.weights_sha256(source))
        and _runs_on(manifest, order.device)
        and spec.grids.items() <= manifest.spec.grids.items()
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


def _refuse_engine(what: str, source: Path | None) -> None:
    if source and manifests.is_engine(source):
        raise InvalidInput(f"{what} is {str(source)!r}, an engine; expected the checkpoint that it was exported from")


def _expect_one_of(what: str, name: str, known: Any) -> None:
    if name not in known:
        raise InvalidInput(f"{what} is {name!r}; expected one of {', '.join(known)}")
