"""Flow maps: exact solutions stand at the floor, gradients are those of the formula, and public bugs are noticed.

Two oracles: the average velocity of Gaussian data (tests/exact.py); and each objective once more by finite differences
and compositions of maps, for any network. That tiny networks learn the map of a mixture is in test_learning.py.
"""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from exact import LAW, NULL, SIZE, Average, assert_solved, assert_zero, draw, draw_labelled, unexplained, variance
from planted import Mutant, planted
from pyflow.training import flow_maps
from pyflow.training.batch import Batch
from pyflow.training.objectives import OBJECTIVES, Loss
from pyflow.training.settings import Options
from torch import Tensor, nn

from pyflow.core import LINEAR
from pyflow.models import random_network
from pyflow.spec import MLP, Spec

SPEC = Spec(MLP(shape=(SIZE,), classes=2, times=2))
TOLD = replace(SPEC, network=replace(SPEC.network, guided=True))
GUIDED = [name for name, each in OBJECTIVES.items() if "guidance" in each.reads]
TWO_TIMES = [name for name, each in OBJECTIVES.items() if each.two_times]


def test_the_exact_average_velocity_is_the_law_s(seed):
    x, s, t = torch.randn(50, SIZE, dtype=torch.float64), torch.rand(50).double(), torch.rand(50).double()
    s, t = torch.minimum(s, t), torch.maximum(s, t)
    t[:10] = s[:10]
    said = Average()(x, s, t, torch.zeros(50, dtype=torch.int64)).detach()
    for i in range(50):
        truth = LAW.average_velocity(LINEAR, x[i].numpy(), float(s[i]), float(t[i]))
        np.testing.assert_allclose(said[i], truth, rtol=1e-5, atol=1e-7, err_msg=f"seed {seed}")


# ---- at the exact map the loss is at its floor and its gradient is zero
def diagonal_floor(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
    """A map's own equation is met exactly; flow matching on the diagonal is not."""
    return torch.where(s == t, unexplained(LINEAR, t), 0)


def mean_flow_floor(s: Tensor, t: Tensor, batch: Batch, w: Tensor | float = 1.0, own_tangent: bool = False) -> Tensor:
    """The sample's velocity, w times what x does not tell; stretched by the map's slope where it is the tangent."""
    stretch = 1.0 if own_tangent else variance(t) / variance(s)
    strength = torch.where(batch.label == NULL, 1.0, w)
    return SIZE * strength.square() * stretch * unexplained(LINEAR, s)


def consistency_floor(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
    return (t - s).square() / OPTIONS.gap * variance(torch.ones_like(t)) / variance(t) * unexplained(LINEAR, s)


OPTIONS = Options(adaptive=0.0, diagonal=0.5, gap=1e-3)
FLOORS = dict.fromkeys(("lsd", "esd", "psd-midpoint", "psd-uniform"), diagonal_floor)
FLOORS |= {"meanflow": mean_flow_floor, "improved-meanflow": partial(mean_flow_floor, own_tangent=True)}
FLOORS |= {"consistency": consistency_floor}


def solved(objective: Loss, name: str, seed: int) -> None:
    assert_solved(lambda net, batch: objective(net, SPEC, batch, OPTIONS), Average(), draw, FLOORS[name], seed)


@pytest.mark.parametrize("name", FLOORS)
def test_the_exact_map_stands_on_its_floor(name, seed):
    solved(OBJECTIVES[name].loss, name, seed)


def solved_with_guidance(objective: Loss, name: str, seed: int, told: bool = False) -> None:
    """Two classes and what has no label; the guided map is exact again, its mean being mixed of theirs."""
    largest, spec = 1.5, TOLD if told else SPEC
    options = replace(OPTIONS, guidance=largest)

    def floor(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        w = 1 + (largest - 1) * batch.coins[:, 2] if told else largest
        return mean_flow_floor(s, t, batch, w, own_tangent=name == "improved-meanflow")

    net = Average() if told else Average(largest)
    assert_solved(lambda net, batch: objective(net, spec, batch, options), net, draw_labelled, floor, seed)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("name", GUIDED)
def test_the_exact_guided_map_stands_on_its_floor(name, told, seed):
    solved_with_guidance(OBJECTIVES[name].loss, name, seed, told)


@pytest.mark.parametrize("times", ["uniform", "logit-normal"])
def test_the_adaptive_weight_leaves_the_exact_map_alone(times, seed):
    """Given x a Gaussian sample's velocity errs evenly to both sides, so a weight of the error's size favours none."""
    net, options, slopes = Average(), replace(OPTIONS, adaptive=1.0, times=times), []
    for _ in range(64):
        loss = OBJECTIVES["meanflow"].loss(net, SPEC, draw(512), options).each.mean()
        slopes.append(torch.autograd.grad(loss, net.bend)[0])
    for slope in torch.stack(slopes).T:
        assert_zero(slope, 0.04, f"seed {seed}")


# ---- any network: the same loss and gradient as the formula, by finite differences and compositions of maps
STEP = 1e-6


class Jumps:
    """A network's average velocity and its map X_st, labels and guidance given."""

    def __init__(self, net: nn.Module, label: Tensor, told: tuple[Tensor, ...]) -> None:
        self.net, self.label, self.told = net, label, told

    def mean(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.net(x, s, t, self.label, *self.told)

    def jump(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return x + (t - s)[:, None] * self.mean(x, s, t)


def slope(function, *points: tuple[Tensor, Tensor | float]) -> Tensor:
    """The derivative of a function along the directions given with its arguments."""
    ahead, behind = ([at + sign * STEP * along for at, along in points] for sign in (1, -1))
    return (function(*ahead) - function(*behind)) / (2 * STEP)


def residual(name: str, live: Jumps, sg: Jumps, s: Tensor, t: Tensor, batch: Batch, velocity: Tensor) -> Tensor:
    """What each objective squares, `sg` being the network where its gradient stops."""
    x, gap = LINEAR.mix(batch.image, batch.noise, s[:, None]), (t - s)[:, None]
    here = sg.mean(x, s, s)
    if name == "lsd":
        return slope(live.jump, (x, 0), (s, 0), (t, 1)) - sg.mean(sg.jump(x, s, t), t, t)
    if name == "esd":
        return slope(live.jump, (x, here), (s, 1), (t, 0))
    if name.startswith("psd"):
        h = 0.5 if name == "psd-midpoint" else batch.coins[:, 2]
        u = h * s + (1 - h) * t
        return live.mean(x, s, t) - (sg.jump(sg.jump(x, s, u), u, t) - x) / gap
    tangent = here if name == "improved-meanflow" else velocity
    return live.mean(x, s, t) - velocity - gap * slope(sg.mean, (x, tangent), (s, 1), (t, 0))


def formula(name: str, net: nn.Module, spec: Spec, batch: Batch, options: Options, s: Tensor, t: Tensor) -> Tensor:
    """The losses of an objective at the times that it drew."""
    w = 1 + (options.guidance - 1) * (batch.coins[:, 2] if spec.network.guided else torch.ones_like(s))
    told = (w,) if spec.network.guided else ()
    live, sg = (Jumps(each, batch.label, told) for each in (net, copy.deepcopy(net).requires_grad_(False)))
    x, velocity = LINEAR.mix(batch.image, batch.noise, s[:, None]), batch.image - batch.noise
    if options.guidance > 1:
        plain = Jumps(sg.net, torch.full_like(batch.label, NULL), told).mean(x, s, s)
        w = torch.where(batch.label == NULL, 1.0, w)[:, None]
        velocity = w * velocity + (1 - w) * plain
    alone = (s == t)[:, None]
    on_diagonal = live.mean(x, s, t) - velocity
    square = torch.where(alone, on_diagonal, residual(name, live, sg, s, t, batch, velocity)).square()
    if name not in GUIDED:
        return square.mean(1)
    total = square.sum(1)
    return total / (total.detach() + 1e-3) ** options.adaptive


def agrees(objective: Loss, name: str, seed: int, guided: bool = False) -> None:
    torch.manual_seed(seed)
    spec = TOLD if guided else SPEC
    options = Options(diagonal=0.25, guidance=2.5 if name in GUIDED else 1.0, adaptive=0.75)
    net, batch = random_network(spec.network, seed).double(), draw_labelled(256)
    losses = objective(net, spec, batch, options)
    assert (losses.s == losses.t).sum() == 64
    expected = formula(name, net, spec, batch, options, losses.s, losses.t)
    torch.testing.assert_close(losses.each.double(), expected, rtol=1e-4, atol=1e-5, msg=lambda m: f"seed {seed}: {m}")
    ours, theirs = (torch.autograd.grad(each.mean(), list(net.parameters())) for each in (losses.each, expected))
    for (weight, _), one, other in zip(net.named_parameters(), ours, theirs):
        difference = (one - other).norm() / (other.norm() + 1e-6)
        assert difference < 1e-3, f"seed {seed}: the gradient of {weight} is off by {difference}"


@pytest.mark.parametrize("name", TWO_TIMES)
def test_losses_and_gradients_are_the_formula_s(name, seed):
    agrees(OBJECTIVES[name].loss, name, seed)


@pytest.mark.parametrize("name", GUIDED)
def test_losses_and_gradients_with_guidance_told_are_the_formula_s(name, seed):
    agrees(OBJECTIVES[name].loss, name, seed, guided=True)


# ---- what public implementations get wrong, planted one by one
MUTANTS = {
    "b at the start instead of the end": Mutant("lsd", "lsd", "phi(x + gap * mean, t, t)", "phi(x, t, t)"),
    "b of the time before": Mutant("lsd", "lsd", "phi(x + gap * mean, t, t)", "phi(x + gap * mean, s, s)"),
    "LSD's target learns too": Mutant("lsd", "lsd", "torch.no_grad()", "torch.enable_grad()", False),
    "LSD without (t-s)": Mutant("lsd", "lsd", "mean + gap * rate", "mean + rate"),
    "b at the end": Mutant("esd", "esd", "phi(x, s, s)", "phi(x, t, t)"),
    "ESD against the flow": Mutant("esd", "esd", "(velocity, torch.ones_like(s)", "(-velocity, torch.ones_like(s)"),
    "the velocity learns too": Mutant("esd", "esd", "torch.no_grad()", "torch.enable_grad()", False),
    "the derivative stands still": Mutant("esd", "esd", "* rate -", "* rate.detach() -", False),
    "shares swapped": Mutant(
        "psd-uniform",
        "_psd",
        "(1 - over(h, x)) * near - over(h, x) * far",
        "over(h, x) * near - (1 - over(h, x)) * far",
    ),
    "u mixed the other way": Mutant("psd-uniform", "_psd", "h * s + (1 - h) * t", "(1 - h) * s + h * t"),
    "the second half from the start": Mutant("psd-midpoint", "_psd", "x + over(u - s, x) * near", "x"),
    "PSD's target learns too": Mutant("psd-midpoint", "_psd", "torch.no_grad()", "torch.enable_grad()", False),
    "the sign of the derivative": Mutant(
        "meanflow", "_mean_flow", "over(t - s, x) * turned", "over(s - t, x) * turned"
    ),
    "the sign, improved": Mutant("improved-meanflow", "_mean_flow", "(t - s, x) * turned", "(s - t, x) * turned"),
    "the derivative learns too": Mutant("meanflow", "_mean_flow", "rate.detach()", "rate", False),
    "s told to stand still": Mutant(
        "meanflow", "_mean_flow", "torch.ones_like(s[there])", "torch.zeros_like(s[there])"
    ),
    "the image at the time itself": Mutant("consistency", "consistency", "over(1 - at, x) * net", "net"),
    "the time told twice": Mutant("consistency", "consistency", "net(x, at, one,", "net(x, at, at,"),
    "consistency's target learns too": Mutant("consistency", "consistency", "torch.no_grad()", "torch.enable_grad()"),
    "another noise at the second time": Mutant(
        "consistency",
        "consistency",
        "batch.image, batch.noise",
        "batch.image, torch.randn_like(batch.noise)",
    ),
    "the mean in the weight": Mutant("meanflow", "_mean_flow", "ADAPTIVE_FLOOR)", "ADAPTIVE_FLOOR * 3)", False),
    "a weight that learns": Mutant("meanflow", "_mean_flow", "total.detach()", "total", False),
}
GUIDANCE_MUTANTS = {
    "the plain velocity as the tangent": Mutant(
        "meanflow", "_mean_flow", "tangent = v[there]", "tangent = (batch.image - batch.noise)[there]"
    ),
    "the guided label on both sides": Mutant("meanflow", "_guided_velocity", "s, s, nothing", "s, s, batch.label"),
    "dropped labels guided": Mutant(
        "meanflow", "_guided_velocity", "over(batch.label == nothing, x)", "over(batch.label < 0, x)", False
    ),
    "guidance the wrong way": Mutant("meanflow", "_guided_velocity", "* (v - plain)", "* (plain - v)"),
}


SPOILED_FORMULAS = {bug: mutant for bug, mutant in (MUTANTS | GUIDANCE_MUTANTS).items() if mutant.name in TWO_TIMES}


@pytest.mark.parametrize("mutant", SPOILED_FORMULAS.values(), ids=SPOILED_FORMULAS.keys())
def test_the_formula_notices(mutant, seed):
    with pytest.raises(AssertionError, match="seed"):
        agrees(planted(flow_maps, mutant), mutant.name, seed)


@pytest.mark.parametrize("bug", [bug for bug, mutant in MUTANTS.items() if mutant.seen_when_solved])
def test_the_exact_map_notices(bug, seed):
    mutant = MUTANTS[bug]
    with pytest.raises(AssertionError, match="expected 0"):
        solved(planted(flow_maps, mutant), mutant.name, seed)


@pytest.mark.parametrize("bug", [bug for bug, mutant in GUIDANCE_MUTANTS.items() if mutant.seen_when_solved])
def test_the_exact_guided_map_notices(bug, seed):
    mutant = GUIDANCE_MUTANTS[bug]
    with pytest.raises(AssertionError, match="expected 0"):
        solved_with_guidance(planted(flow_maps, mutant), mutant.name, seed)
