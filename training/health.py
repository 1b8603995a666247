"""Signs of health beside the loss: one short function each, of a network that is not trained here."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyflow.core import PATHS
from pyflow.metrics import frechet_distance
from pyflow.spec import Spec

from .batch import Batch, over

Told = tuple[Tensor, ...]  # what a guided network is told beside the label
POOLED, COLOURS = 4, 4  # pixels of a side, where there are few channels: 48 features of a colour picture
MOST = 64  # features: a covariance needs more samples than it has


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def jvp_norm(net: nn.Module, spec: Spec, batch: Batch, told: Told = ()) -> float:
    """The root mean square, an element, of d phi_st(x_s)/ds along the flow: what MeanFlow and flow maps learn from.

    The network must not have its channels last: torch's derivative of a group norm refuses that.
    """
    path, (s, t) = PATHS[spec.path], batch.coins[:, :2].sort(1).values.unbind(1)
    at = over(s, batch.image)
    direction = (path.velocity(batch.image, batch.noise, at), torch.ones_like(s), torch.zeros_like(t))
    at_s = (path.mix(batch.image, batch.noise, at), s, t)

    def phi(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return net(batch.joined(x), s, t, batch.label, *told)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        rate: Tensor = torch.func.jvp(phi, at_s, direction)[1]
    return float(_rms(rate))


def semigroup_error(net: nn.Module, spec: Spec, batch: Batch, told: Told = ()) -> float:
    """|X_st - X_ut(X_su)| / |X_st - x_s| of a flow map, 0 for an exact one, at random s < u < t."""

    def jump(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x + over(t - s, x) * net(batch.joined(x), s, t, batch.label, *told)

    s, u, t = batch.coins[:, :3].sort(1).values.unbind(1)
    x = PATHS[spec.path].mix(batch.image, batch.noise, over(s, batch.image))
    with torch.no_grad():
        whole = jump(x, s, t)
        return float(_rms(whole - jump(jump(x, s, u), u, t)) / _rms(whole - x))


def small_frechet(made: Tensor, real: Tensor, features: Callable[[Tensor], Tensor]) -> float:
    """The Fréchet distance of a few hundred samples: biased upward, and comparable along one run only."""
    if not torch.isfinite(made).all():
        return math.nan
    return frechet_distance(features(made).cpu().numpy(), features(real).cpu().numpy())


def plain_features(shape: tuple[int, ...]) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Without a classifier: the coordinates of points, the pixels of pictures pooled to 4x4; and their name. Many
    coordinates or channels are means over neighbours."""
    if len(shape) == 1 and shape[0] <= MOST:
        return "points", lambda points: points
    if len(shape) == 3 and shape[0] <= MOST:
        side = POOLED if shape[0] <= COLOURS else 1
        return f"pixels-{side}x{side}", lambda images: F.adaptive_avg_pool2d(images, side).flatten(1)
    count = min(MOST, math.prod(shape))
    return f"means-{count}", lambda x: F.adaptive_avg_pool1d(x.flatten(1)[:, None], count)[:, 0]
