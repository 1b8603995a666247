"""The objectives: one short function each, from a batch to a loss a sample. Labels come with their dropout applied."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyflow.core import PATHS, target
from pyflow.spec import Spec

from .batch import Batch, over
from .recipes import Options


class Losses(NamedTuple):
    """A loss a sample, and the times that it was taken at."""

    each: Tensor  # (B,)
    s: Tensor
    t: Tensor


Objective = Callable[[nn.Module, Spec, Batch, Options], Losses]


def _regress(net: nn.Module, spec: Spec, batch: Batch, t: Tensor) -> Tensor:
    """Per element: what the network says at x_t, minus what it should say."""
    path, at = PATHS[spec.path], over(t, batch.image)
    said = net(path.mix(batch.image, batch.noise, at), t, t, batch.label)
    return said - target(path, spec.prediction, batch.image, batch.noise, at)


def cfm(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Conditional flow matching (Lipman et al. 2023, eq. 9): E |v(x_t, t) - (x_1 - x_0)|^2."""
    t = batch.coins[:, 0]
    return Losses(_regress(net, spec, batch, t).square().flatten(1).mean(1), t, t)


def reflow(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Rectified flow on a teacher's own pairs (Liu et al. 2023, eq. 1) and, for half the batch, distillation at t=0.

    t is drawn from p ~ e^{4t} + e^{4(1-t)} (Lee et al. 2024): pairs are hardest to tell apart at both ends. The
    pseudo-Huber loss keeps a few crossing pairs from blurring the rest.
    """
    t = (1 + batch.coins[:, 0] * (math.e**4 - 1)).log() / 4
    t = torch.where(batch.coins[:, 1] < 0.5, t, 1 - t)
    t[: len(t) // 2] = 0.0
    mean_square = _regress(net, spec, batch, t).square().flatten(1).mean(1)
    return Losses((mean_square + 0.03**2).sqrt() - 0.03, t, t)


OBJECTIVES: dict[str, Objective] = {"cfm": cfm, "reflow": reflow}
