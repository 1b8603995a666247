"""What is looked at every so many steps: signs of health and samples of the averaged network. It changes nothing."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyflow.core import VELOCITY
from pyflow.spec import Spec

from . import health, preview
from .batch import Batch, Draw
from .classifier import Classifier
from .distributed import forked

if TYPE_CHECKING:
    import PIL.Image

STEPS, SHOWN = (1, 2, 4), 8
SEED, PICTURES, POINTS, PROBED = 7, 256, 1024, 32


class Watch:
    """A fixed batch of the data, and what is measured with it; `judge`, a classifier of it, lends its features."""

    def __init__(self, spec: Spec, draw: Draw, device: torch.device, judge: Classifier | None, data: str) -> None:
        self.spec = spec
        pictures = len(spec.network.shape) == 3
        with forked(device):
            torch.manual_seed(SEED)
            self.real = draw(PICTURES if pictures else POINTS).to(device)
        self.features = health.plain_features(spec.network.shape)
        if judge is not None:
            self.features = f"{data}-classifier", copy.deepcopy(judge).to(device).features

    def look(self, net: nn.Module) -> tuple[dict[str, float], "PIL.Image.Image | None"]:
        """The signs of health by name, and a picture of samples at 1, 2 and 4 steps."""
        spec, probed = self.spec, Batch(*(tensor[:PROBED] for tensor in self.real))
        told = (torch.ones(PROBED, device=probed.image.device),) if spec.network.guided else ()
        plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        signs = {"jvp-norm": health.jvp_norm(plain, spec, probed, told)}
        if spec.network.times == 2 and spec.prediction == VELOCITY:
            signs["semigroup-error"] = health.semigroup_error(net, spec, probed, told)
        name, features = self.features
        made = preview.states(net, spec, STEPS[-1], self.real.label)
        with torch.no_grad():
            signs[f"frechet-{STEPS[-1]}-steps/{name}"] = health.small_frechet(made, self.real.image, features)
        if len(spec.network.shape) == 3:
            shown = torch.arange(SHOWN, device=made.device) % max(1, spec.network.classes)
        else:
            shown = self.real.label
        rows = [preview.states(net, spec, steps, shown) for steps in STEPS]
        return signs, preview.picture(rows, self.real.image)
