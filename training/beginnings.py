"""Where training begins: what the network will be, and the weights of another checkpoint that it starts from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyflow import checkpoint
from pyflow.errors import InvalidInput
from pyflow.models import build
from pyflow.spec import Network, Spec

from .settings import Recipe
from .trainer import provenance

TIMES, GUIDE = "condition.project.0.weight", "condition.guide."


def spec_of(setting: Recipe, **origin: Any) -> Spec:
    """What the trained network will be; one with its guidance in its weights is not guided again."""
    network = setting.network
    extra = getattr(network, "extra", 0)
    if extra:
        raise InvalidInput(f"network.extra is {extra}; expected 0: these recipes have nothing to give it there")
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


def begin(source: Path, network: Network) -> nn.Module:
    """A module of `network` that says what the checkpoint's does.

    A second time and a guidance are inputs that the checkpoint may lack: what reads them starts at zero.
    """
    model, spec = checkpoint.load(source)
    weights, made = dict(model.state_dict()), build(network)
    if (spec.network.times, network.times) == (1, 2):
        weights[TIMES] = torch.cat([weights[TIMES], torch.zeros_like(weights[TIMES])], dim=1)
    if network.guided and not spec.network.guided:
        guide = {name: weight for name, weight in made.state_dict().items() if name.startswith(GUIDE)}
        weights |= {name: weight * (not name.startswith(f"{GUIDE}2.")) for name, weight in guide.items()}
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
