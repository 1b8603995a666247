"""Where training begins: the weights of another checkpoint, in a network that may also take what that one did not."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pyflow import checkpoint
from pyflow.errors import InvalidInput
from pyflow.models import build
from pyflow.spec import Network

TIMES, GUIDE = "condition.project.0.weight", "condition.guide."


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
