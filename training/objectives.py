"""The objectives: one short function each, from a batch to a loss a sample. Labels come with their dropout applied."""

from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyflow.core import IMAGE, NOISE, PATHS, VELOCITY, V, split, target
from pyflow.errors import InvalidInput
from pyflow.spec import Spec

from .batch import Batch, Losses, over
from .flow_maps import consistency, esd, improved_meanflow, lsd, mean_square, meanflow, psd_midpoint, psd_uniform
from .perceptual import lpips_distance
from .pooling import pooled
from .settings import Options
from .times import draw_time

Loss = Callable[[nn.Module, Spec, Batch, Options], Losses]


def _squares(missed: Tensor, batch: Batch, options: Options) -> tuple[Tensor, Tensor]:
    """What was missed, squared, a sample: with this share of it the mean over the hole alone; and over the whole."""
    whole = mean_square(missed)
    if batch.mask is None:
        return whole, whole
    holes = (batch.mask * missed.float().square()).flatten(1).sum(1) / batch.mask.flatten(1).sum(1).clamp(min=1)
    return (1 - options.region) * whole + options.region / missed.shape[1] * holes, whole


def _regress(net: nn.Module, spec: Spec, batch: Batch, t: Tensor, options: Options) -> Losses:
    """|net(x_t, t) - target|^2, the target being what `spec.prediction` means on `spec.path`."""
    path, at = PATHS[spec.path], over(t, batch.image)
    said = net(batch.joined(path.mix(batch.image, batch.noise, at)), t, t, batch.label)
    missed = said - target(path, spec.prediction, batch.image, batch.noise, at)
    each, square = _squares(missed, batch, options)
    return Losses(each, t, t, square)


def cfm(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Conditional flow matching (Lipman et al. 2023, eq. 9): E |v(x_t, t) - (x_1 - x_0)|^2."""
    t = draw_time(batch.coins[:, 0], options.times)
    return _regress(net, spec, pooled(batch, PATHS[spec.path], t) if options.pooled else batch, t, options)


def ddpm(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Denoising diffusion (Ho et al. 2020, eq. 14): E |eps - eps(sqrt(abar_t) x_1 + sqrt(1 - abar_t) eps, t)|^2; or of
    v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_1 (Salimans & Ho 2022), which tells the picture in pure noise too."""
    t = batch.coins[:, 0]
    return _regress(net, spec, pooled(batch, PATHS[spec.path], t) if options.pooled else batch, t, options)


def lines(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Lines: E |f(x_t, t) - x_1|^2 at every t of the straight line between a teacher's noise and its picture."""
    return _regress(net, spec, batch, batch.coins[:, 0], options)


def naive(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """What Lines is held against: E |f(x_0, 0) - x_1|^2, at the noise alone."""
    return _regress(net, spec, batch, torch.zeros_like(batch.coins[:, 0]), options)


def _bent(net: nn.Module, spec: Spec, batch: Batch, t: Tensor, options: Options) -> Losses:
    """The pair's own displacement, under a pseudo-Huber loss (it keeps a few crossing pairs from blurring the rest),
    and LPIPS between the picture and where the network's line from x_t ends."""
    path, at = PATHS[spec.path], over(t, batch.image)
    x = path.mix(batch.image, batch.noise, at)
    said = net(batch.joined(x), t, t, batch.label)
    missed = said - target(path, spec.prediction, batch.image, batch.noise, at)
    each, square = _squares(missed, batch, options)
    if options.huber:
        each = (each + options.huber**2).sqrt() - options.huber
    if options.lpips:
        ends = split(path, spec.prediction, at)
        each = each + options.lpips * lpips_distance(ends.image_x * x + ends.image_p * said, batch.image)
    return Losses(each, t, t, square)


def reflow(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """Rectified flow on a teacher's own pairs (Liu et al. 2023, eq. 1), improved as by Lee et al. 2024 (u-shaped times,
    pseudo-Huber, LPIPS); the first share `options.jump` of the batch is distilled at t=0."""
    t = draw_time(batch.coins[:, 0], options.times)
    jumps = batch.share(options.jump)
    return _bent(net, spec, batch, torch.cat([torch.zeros_like(t[:jumps]), t[jumps:]]), options)


def grid(net: nn.Module, spec: Spec, batch: Batch, options: Options) -> Losses:
    """k-step distillation (Liu et al. 2023, sec. 2.1): reflow at the times i/k that k steps of Euler visit."""
    return _bent(net, spec, batch, (batch.coins[:, 0] * options.grid).floor() / options.grid, options)


class Objective(NamedTuple):
    """A loss and what it asks: of the data, the network, the path; and the options that it reads."""

    loss: Loss
    reads: frozenset[str] = frozenset()  # learned_weight is the trainer's and fits all
    holes: frozenset[str] = frozenset()  # what it reads besides for a network that sees the mask; empty: it takes none
    predicts: tuple[str, ...] = (VELOCITY,)
    paths: tuple[str, ...] = ("linear",)  # a velocity has no limit at t=1 on the others
    from_pairs: bool = False
    two_times: bool = False
    differentiates: bool = False  # the network, along a direction


HELD = frozenset({"region"})
HOLES = HELD | {"masked"}
BEND = frozenset({"huber", "lpips"})
MAP = frozenset({"times", "diagonal", "pooled"})
MEAN = MAP | {"guidance", "adaptive"}
OBJECTIVES = {
    "cfm": Objective(cfm, frozenset({"times", "pooled"}), HOLES),
    "ddpm": Objective(ddpm, frozenset({"pooled"}), HOLES, (NOISE, V), ("vp-cosine", "vp-linear")),
    "reflow": Objective(reflow, BEND | {"times", "jump"}, HELD, from_pairs=True),
    "grid": Objective(grid, BEND | {"grid"}, HELD, from_pairs=True),
    "lines": Objective(lines, holes=HELD, predicts=(IMAGE,), from_pairs=True),
    "naive": Objective(naive, holes=HELD, predicts=(IMAGE,), from_pairs=True),
    "meanflow": Objective(meanflow, MEAN, two_times=True, differentiates=True),
    "improved-meanflow": Objective(improved_meanflow, MEAN, two_times=True, differentiates=True),
    "lsd": Objective(lsd, MAP, two_times=True, differentiates=True),
    "psd-midpoint": Objective(psd_midpoint, MAP, two_times=True),
    "psd-uniform": Objective(psd_uniform, MAP, two_times=True),
    "esd": Objective(esd, MAP, two_times=True, differentiates=True),
    "consistency": Objective(consistency, frozenset({"times", "gap"})),
}


def _known(name: str) -> Objective:
    if name not in OBJECTIVES:
        raise InvalidInput(f"objective is {name!r}; expected one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def refuse_source(name: str, pairs: bool) -> None:
    """Refuse an objective of pairs for data, and one of data for pairs."""
    if _known(name).from_pairs != pairs:
        others = ", ".join(other for other, each in OBJECTIVES.items() if each.from_pairs == pairs)
        source = "a teacher's pairs" if pairs else "data"
        raise InvalidInput(f"objective is {name!r}; expected one that learns from {source}: {others}")


def objective(name: str, spec: Spec, options: Options) -> Objective:
    """An objective by name, refused where the network cannot learn it, or does not read an option that is set."""
    asked, network = _known(name), spec.network
    guides = "guidance" in asked.reads
    paths, predicts = (" or ".join(map(repr, names)) for names in (asked.paths, asked.predicts))
    for fits, sentence in (
        (spec.prediction in asked.predicts, f"prediction is {spec.prediction!r}; {name} expected {predicts}"),
        (
            not asked.two_times or network.times == 2,
            f"times is {network.times}; {name} expected a network with times=2",
        ),
        (spec.path in asked.paths, f"path is {spec.path!r}; {name} expected {paths}"),
        (
            not network.guided or guides,
            f"guided is {network.guided}; {name} expected a network that is told no guidance",
        ),
        (
            options.guidance == 1 or (guides and network.classes > 0),
            f"guidance is {options.guidance:g}; expected 1: only MeanFlow on labelled data has guidance in its target",
        ),
        (
            not network.sees_mask or asked.holes,
            f"the network sees a mask; {name} expected one that sees none: "
            f"{', '.join(other for other, each in OBJECTIVES.items() if each.holes)} fill holes",
        ),
        (
            not options.pooled or (network.classes == 0 and not network.sees_mask),
            "pooled is True; expected False: pools know no classes and no masks",
        ),
        (
            not options.lpips or len(network.shape) == 3,
            f"lpips is {options.lpips:g}; expected 0: points are no pictures",
        ),
    ):
        if not fits:
            raise InvalidInput(sentence)
    reads = asked.reads | asked.holes if network.sees_mask else asked.reads
    for option in fields(Options):
        value = getattr(options, option.name)
        if value != option.default and option.name not in reads | {"learned_weight"}:
            blind = " of a network that sees no mask" if option.name in asked.holes else ""
            raise InvalidInput(
                f"{option.name} is {value!r}; expected {option.default!r}: {name}{blind} does not read it, "
                f"but {', '.join(sorted(reads)) or 'no option'}"
            )
    return asked
