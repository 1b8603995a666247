"""The objectives: one short function each, from a batch to a loss. Labels come with their dropout already applied."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyflow.core import PATHS, target
from pyflow.spec import Spec


class Batch(NamedTuple):
    noise: Tensor
    label: Tensor
    image: Tensor


def _over(t: Tensor, like: Tensor) -> Tensor:
    """Times (batch,) shaped to multiply a batch of pictures."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def _regress(net: nn.Module, spec: Spec, batch: Batch, t: Tensor) -> Tensor:
    """Per element: what the network says at x_t, minus what it should say."""
    path, over = PATHS[spec.path], _over(t, batch.image)
    said = net(path.mix(batch.image, batch.noise, over), t, t, batch.label)
    return said - target(path, spec.prediction, batch.image, batch.noise, over)


def cfm(net: nn.Module, spec: Spec, batch: Batch) -> Tensor:
    """Conditional flow matching (Lipman et al. 2023, eq. 9): E |v(x_t, t) - (x_1 - x_0)|^2."""
    t = torch.rand(len(batch.label))
    return _regress(net, spec, batch, t).square().mean()


def reflow(net: nn.Module, spec: Spec, batch: Batch) -> Tensor:
    """Rectified flow on a teacher's own pairs (Liu et al. 2023, eq. 1) and, for half the batch, distillation at t=0.

    t is drawn from p ~ e^{4t} + e^{4(1-t)} (Lee et al. 2024): pairs are hardest to tell apart at both ends. The
    pseudo-Huber loss keeps a few crossing pairs from blurring the rest.
    """
    t = (1 + torch.rand(len(batch.label)) * (math.e**4 - 1)).log() / 4
    t = torch.where(torch.rand_like(t) < 0.5, t, 1 - t)
    t[: len(t) // 2] = 0.0
    mean_square = _regress(net, spec, batch, t).square().flatten(1).mean(1)
    return ((mean_square + 0.03**2).sqrt() - 0.03).mean()


OBJECTIVES: dict[str, Callable[[nn.Module, Spec, Batch], Tensor]] = {"cfm": cfm, "reflow": reflow}
