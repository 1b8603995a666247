"""What is looked at every so many steps: signs of health and samples of the averaged network. It changes nothing."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from pyflow.core import VELOCITY
from pyflow.spec import Spec

from . import health, preview
from .batch import Batch, Draw, Losses
from .classifier import Classifier
from .distributed import forked

if TYPE_CHECKING:
    import PIL.Image

T = TypeVar("T")
LossOf = Callable[[nn.Module, Batch], Losses]
STEPS, SHOWN = (1, 2, 4), 8
SEED, PICTURES, POINTS, PROBED, WEIGHED = 7, 256, 1024, 32, 64
FIXED_LOSS = "fixed-loss"


class Watch:
    """A fixed batch of the data, and what is measured with it; `judge`, a classifier of it, lends its features.

    On the same samples, times and noise an objective's loss has no chance of its own: a hundred steps show in it.
    """

    def __init__(
        self, spec: Spec, draw: Draw, device: torch.device, judge: Classifier | None, data: str, loss_of: LossOf
    ) -> None:
        self.spec, self.loss_of = spec, loss_of
        pictures = len(spec.network.shape) == 3
        with forked(device):
            torch.manual_seed(SEED)
            self.real = draw(PICTURES if pictures else POINTS).to(device)
        self.failed: set[str] = set()
        self.features = health.plain_features(spec.network.shape)
        if judge is not None:
            self.features = f"{data}-classifier", copy.deepcopy(judge).to(device).features

    def look(self, net: nn.Module) -> tuple[dict[str, float], "PIL.Image.Image | None"]:
        """The signs of health by name, and a picture of samples at 1, 2 and 4 steps."""
        spec, probed = self.spec, self.real.between(0, PROBED)
        told = (torch.ones(PROBED, device=probed.image.device),) if spec.network.guided else ()
        plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        name, features = self.features

        def loss() -> float:
            with torch.no_grad():
                return float(self.loss_of(plain, self.real.between(0, WEIGHED)).square.mean())

        def distance() -> float:
            made = preview.states(net, spec, STEPS[-1], self.real)
            with torch.no_grad():
                return health.small_frechet(made, self.real.image, features)

        def picture() -> "PIL.Image.Image | None":
            shown = self.real
            if len(spec.network.shape) == 3:
                shown = shown.between(0, SHOWN)
                if shown.mask is None:
                    labels = torch.arange(SHOWN, device=shown.label.device) % max(1, spec.network.classes)
                    shown = shown._replace(label=labels)
            return preview.picture([preview.states(net, spec, steps, shown) for steps in STEPS], self.real.image)

        signs = {
            FIXED_LOSS: self._tried(FIXED_LOSS, loss, math.nan),
            "jvp-norm": self._tried("jvp-norm", partial(health.jvp_norm, plain, spec, probed, told), math.nan),
        }
        if spec.network.times == 2 and spec.prediction == VELOCITY:
            error = partial(health.semigroup_error, net, spec, probed, told)
            signs["semigroup-error"] = self._tried("semigroup-error", error, math.nan)
        of = f"frechet-{STEPS[-1]}-steps/{name}"
        signs[of] = self._tried(of, distance, math.nan)
        return signs, self._tried("samples", picture, None)

    def _tried(self, name: str, sign: Callable[[], T], missing: T) -> T:
        """A sign, or what stands for one that cannot be had, which is said once: no look may end a run."""
        try:
            return sign()
        except Exception as error:  # of any network of one's own
            if name not in self.failed:
                tqdm.write(f"{name} is missing in the log: {type(error).__name__}: {error}")
            self.failed.add(name)
            return missing
