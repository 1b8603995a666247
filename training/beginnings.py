"""Where training begins: what the network will be, and the weights of another checkpoint that it starts from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyflow import checkpoint
from pyflow.core import NOISE, VELOCITY, V, uniform_grid
from pyflow.errors import InvalidInput
from pyflow.models import build
from pyflow.spec import Network, Spec, UNet

from .fields import flags_that_fit
from .objectives import objective, refuse_source
from .settings import Recipe
from .trainer import provenance

TIMES, GUIDE, ENTER = "condition.project.0.weight", "condition.guide.", "enter.weight"
OBJECTIVES = {VELOCITY: "cfm", NOISE: "ddpm", V: "ddpm"}  # by what the checkpoint predicts


def spec_of(setting: Recipe, **origin: Any) -> Spec:
    """What the trained network will be; one with its guidance in its weights is not guided again."""
    network = setting.network
    extra = getattr(network, "extra", 0)
    if extra and not network.sees_mask:
        raise InvalidInput(
            f"network.extra is {extra}; expected 0, or {network.shape[0] + 1} for what is kept of a picture and its "
            "mask: the recipes have nothing else to give it there"
        )
    if setting.flip and len(network.shape) == 1:
        raise InvalidInput("flip is True; expected False: points have no mirror image")
    if setting.options.lpips > 0 and len(network.shape) == 1:
        raise InvalidInput(f"lpips is {setting.options.lpips:g}; expected 0: points are no pictures to look at")
    nothing = setting.label_dropout > 0 and network.classes > 0
    if setting.options.guidance > 1 and not nothing:
        raise InvalidInput(
            f"guidance is {setting.options.guidance:g}; expected 1 with label_dropout={setting.label_dropout:g} and "
            f"{network.classes} classes: the network learns no null label to guide away from"
        )
    return Spec(
        network,
        setting.path,
        setting.prediction,
        setting.solver,
        null_label=nothing and setting.options.guidance == 1 and not network.guided,
        provenance={**provenance(setting), **origin},
    )


def seeing_masks(source: Path) -> dict[str, Any]:
    """The recipe's fields that go on from a checkpoint with a network that sees the mask too."""
    spec = checkpoint.load_spec(source)
    network = spec.network
    if not isinstance(network, UNet) or network.times == 2 or spec.prediction not in OBJECTIVES:
        raise InvalidInput(
            f"the network of {source} is a {type(network).__name__} of times={network.times} that predicts "
            f"{spec.prediction}; recipe 'inpaint' expected a UNet of times=1 that predicts {' or '.join(OBJECTIVES)}: "
            "start from what `pyflow train cfm` makes of pictures"
        )
    return {
        "network": replace(network, extra=network.shape[0] + 1),
        "path": spec.path,
        "prediction": spec.prediction,
        "solver": spec.solver,
        "objective": OBJECTIVES[spec.prediction],
    }


def refuse_untrainable(setting: Recipe, pairs: bool) -> None:
    """Refuse what no data, no pairs and no machine can train."""
    refuse_source(setting.objective, pairs)
    spec = spec_of(setting)
    objective(setting.objective, spec, setting.options)
    spec.plan(uniform_grid(2))


def refuse_other_data(setting: Recipe, shape: tuple[int, ...], classes: int, start: Path | None = None) -> None:
    network = setting.network
    if (network.shape, network.classes) != (shape, classes):
        way_out = (
            f"another start than {start}"
            if start
            else f"a network that fits: {flags_that_fit(network, shape, classes)}"
        )
        raise InvalidInput(
            f"data {setting.data!r} has shape {shape} and {classes} classes, the recipe's network has {network.shape} "
            f"and {network.classes}: name another data set, or {way_out}"
        )


def refuse_other_words(start: Path, setting: Recipe) -> None:
    """Refuse weights that say another thing, or on another path: their shapes are the same."""
    spec = checkpoint.load_spec(start)
    if (spec.prediction, spec.path) != (setting.prediction, setting.path):
        raise InvalidInput(
            f"{start} predicts {spec.prediction} on the path {spec.path}, the recipe {setting.name!r} "
            f"{setting.prediction} on {setting.path}; expected the same of both: name such a checkpoint, or none to "
            "begin with random weights"
        )


def begin(source: Path, network: Network) -> nn.Module:
    """A module of `network` that says what the checkpoint's does.

    A second time, a guidance and a mask are inputs that the checkpoint may lack: what reads them starts at zero.
    """
    model, spec = checkpoint.load(source)
    weights, made = dict(model.state_dict()), build(network)
    if (spec.network.times, network.times) == (1, 2):
        weights[TIMES] = torch.cat([weights[TIMES], torch.zeros_like(weights[TIMES])], dim=1)
    if network.guided and not spec.network.guided:
        guide = {name: weight for name, weight in made.state_dict().items() if name.startswith(GUIDE)}
        weights |= {name: weight * (not name.startswith(f"{GUIDE}2.")) for name, weight in guide.items()}
    if network.sees_mask and not spec.network.sees_mask and ENTER in weights:
        blind = weights[ENTER]
        told = torch.zeros(len(blind), network.shape[0] + 1, *blind.shape[2:], dtype=blind.dtype)
        weights[ENTER] = torch.cat([blind, told], dim=1)
    _refuse_misfits(source, weights, made.state_dict())
    made.load_state_dict(weights)
    return made


def _refuse_misfits(source: Path, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    def shape(tensors: dict[str, Tensor], name: str) -> str:
        return str(tuple(tensors[name].shape)) if name in tensors else "absent"

    misfits = [
        f"{name} is {shape(weights, name)} and not {shape(expected, name)}"
        for name in sorted({*weights, *expected})
        if shape(weights, name) != shape(expected, name)
    ]
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise InvalidInput(
            f"the weights of {source} do not fit the recipe's network ({', '.join(misfits[:3])}{more}); "
            "name a checkpoint of that network, or none to begin with random weights"
        )
