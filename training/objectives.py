"""The objectives: one short function each, from a batch to a loss a sample. Labels come with their dropout applied."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyflow.core import IMAGE, NOISE, PATHS, VELOCITY, split, target
from pyflow.errors import InvalidInput
from pyflow.spec import Spec

from .batch import Batch, Losses, over
from .flow_maps import consistency, esd, improved_meanflow, lsd, mean_square, meanflow, psd_midpoint, psd_uniform
from .perceptual import lpips_distance
from .pooling import pooled
from .settings import Options
from .times import draw_time

Objective = Callable[[nn.Module, Spec, Batch, Options], Losses]


def _regress(net: nn.Module, spec: Spec, batch: Batch, t: Tensor) -> Losses:
    """|net(x_t, t) - target|^2, the target being what `spec.prediction` means on `spec.path`."""
    path, at = PATHS[spec.path], over(t, batch.image)
    said = net(path.mix(batch.image, batch.noise, at), t, t, batch.label)
    return Losses(mean_square(said - target(path, spec.prediction, batch.image, batch.noise, at)), t, t)


def cfm(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Conditional flow matching (Lipman et al. 2023, eq. 9): E |v(x_t, t) - (x_1 - x_0)|^2."""
    t = draw_time(batch.coins[:, 0], options.times)
    return _regress(net, spec, pooled(batch, PATHS[spec.path], t) if options.pooled else batch, t)


def ddpm(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Denoising diffusion (Ho et al. 2020, eq. 14): E |eps - eps(sqrt(abar_t) x_1 + sqrt(1 - abar_t) eps, t)|^2."""
    t = batch.coins[:, 0]
    return _regress(net, spec, pooled(batch, PATHS[spec.path], t) if options.pooled else batch, t)


def lines(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Lines: E |f(x_t, t) - x_1|^2 at every t of the straight line between a teacher's noise and its picture."""
    return _regress(net, spec, batch, batch.coins[:, 0])


def naive(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """What Lines is held against: E |f(x_0, 0) - x_1|^2, at the noise alone."""
    return _regress(net, spec, batch, torch.zeros_like(batch.coins[:, 0]))


def _bent(net: nn.Module, spec: Spec, batch: Batch, t: Tensor, options: Options) -> Losses:
    """The pair's own displacement, under a pseudo-Huber loss (it keeps a few crossing pairs from blurring the rest),
    and LPIPS between the picture and where the network's line from x_t ends."""
    path, at = PATHS[spec.path], over(t, batch.image)
    x = path.mix(batch.image, batch.noise, at)
    said = net(x, t, t, batch.label)
    each = mean_square(said - target(path, spec.prediction, batch.image, batch.noise, at))
    if options.huber:
        each = (each + options.huber**2).sqrt() - options.huber
    if options.lpips:
        ends = split(path, spec.prediction, at)
        each = each + options.lpips * lpips_distance(ends.image_x * x + ends.image_p * said, batch.image)
    return Losses(each, t, t)


def reflow(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Rectified flow on a teacher's own pairs (Liu et al. 2023, eq. 1), improved as by Lee et al. 2024 (u-shaped times,
    pseudo-Huber, LPIPS); the first share `options.jump` of the batch is distilled at t=0."""
    t = draw_time(batch.coins[:, 0], options.times)
    jumps = batch.share(options.jump)
    return _bent(net, spec, batch, torch.cat([torch.zeros_like(t[:jumps]), t[jumps:]]), options)


def grid(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """k-step distillation (Liu et al. 2023, sec. 2.1): reflow at the times i/k that k steps of Euler visit."""
    return _bent(net, spec, batch, (batch.coins[:, 0] * options.grid).floor() / options.grid, options)


OBJECTIVES: dict[str, Objective] = {
    "cfm": cfm,
    "ddpm": ddpm,
    "reflow": reflow,
    "grid": grid,
    "lines": lines,
    "naive": naive,
    "meanflow": meanflow,
    "improved-meanflow": improved_meanflow,
    "lsd": lsd,
    "psd-midpoint": psd_midpoint,
    "psd-uniform": psd_uniform,
    "esd": esd,
    "consistency": consistency,
}
# What their networks predict and the times that they take, where it is not anything.
PREDICTS = {"ddpm": NOISE, "lines": IMAGE, "naive": IMAGE}
DIFFERENTIATING = ("meanflow", "improved-meanflow", "lsd", "esd")  # their networks, along a direction
TWO_TIMES = ("meanflow", "improved-meanflow", "lsd", "psd-midpoint", "psd-uniform", "esd")
GUIDED = ("meanflow", "improved-meanflow")
STRAIGHT = ("consistency", "lines", "naive", "grid", "reflow")


def objective(name: str, spec: Spec, options: Options) -> Objective:
    """An objective by name, refused where the network cannot learn it."""
    guided = spec.network.guided
    two, predicts = name in TWO_TIMES, PREDICTS.get(name, VELOCITY)
    for fits, sentence in (
        (name in OBJECTIVES, f"objective is {name!r}; expected one of {', '.join(OBJECTIVES)}"),
        (spec.prediction == predicts, f"prediction is {spec.prediction!r}; {name} expected {predicts!r}"),
        (not two or spec.network.times == 2, f"times is {spec.network.times}; {name} expected a network with times=2"),
        (name not in STRAIGHT or spec.path == "linear", f"path is {spec.path!r}; {name} expected 'linear'"),
        (not guided or name in GUIDED, f"guided is {guided}; {name} expected a network that is told no guidance"),
        (
            options.guidance == 1 or (name in GUIDED and spec.network.classes > 0),
            f"guidance is {options.guidance:g}; expected 1: only MeanFlow on labelled data has guidance in its target",
        ),
        (not options.pooled or spec.network.classes == 0, "pooled is True; expected False: pools know no classes"),
    ):
        if not fits:
            raise InvalidInput(sentence)
    return OBJECTIVES[name]
