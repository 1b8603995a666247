"""Straightness of trajectories against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import UNET, flow_of
from torch import nn

from pyflow.core import uniform_grid
from pyflow.engines import eager
from pyflow.engines.runner import SamplerRunner, WholePlan
from pyflow.sampler import Flow
from pyflow.spec import Own, Spec
from pyflow.trajectories import no_trajectory, straightness


class Curved(nn.Module):
    """A velocity of a fixed direction that changes with time: `speed(t) * direction`, plus `bend(t)` across it."""

    def __init__(self, speed, bend):
        super().__init__()
        self.speed, self.bend = speed, bend

    def forward(self, x, s, t, label):
        along = torch.tensor([3.0, 4.0]) * self.speed(s)[:, None]
        return along + torch.tensor([-4.0, 3.0]) * self.bend(s)[:, None]


def flow(speed=torch.ones_like, bend=torch.zeros_like) -> Flow:
    spec = Spec(Own("Curved", (2,)))
    return Flow(eager.runner(Curved(speed, bend), spec), spec, "eager", "none")


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_a_straight_flow_is_straight(solver, grid):
    straight = flow()
    for steps in (1, 2, 7):
        assert straightness(straight, straight.plan(steps, solver, grid), 5) == pytest.approx(0, abs=1e-5)


def test_a_flow_that_speeds_up_has_its_closed_form():
    """dx/dt = 2t c is 1/3 from a line as steps grow, (1 - 1/n)^-2 sum (2 i/n)^2 / n - 1 by Euler."""
    faster = flow(speed=lambda s: 2 * s)
    for steps in (2, 5, 16):
        times = np.arange(steps) / steps
        expected = (np.square(2 * times) / steps).sum() / np.square((2 * times).sum() / steps) - 1
        assert straightness(faster, faster.plan(steps), 3) == pytest.approx(expected, rel=1e-4)
    assert straightness(faster, faster.plan(400), 3) == pytest.approx(1 / 3, rel=1e-2)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ddim"])
def test_a_flow_that_sways_has_its_closed_form(solver):
    """Across a line by cos(2 pi t): the integral of its square is 1/2 of the line's own, and it returns."""
    swaying = flow(bend=lambda s: torch.cos(2 * torch.pi * s))
    assert straightness(swaying, swaying.plan(200, solver), 3) == pytest.approx(0.5, rel=2e-2)


def test_the_grid_weighs_its_steps():
    """On any grid, the sum over its own intervals; a formula with equal weights would miss it."""
    faster = flow(speed=lambda s: 2 * s)
    grid = np.array([0.0, 0.1, 0.15, 0.7, 1.0])
    spans = np.diff(grid)
    expected = (spans * np.square(2 * grid[:-1])).sum() / np.square((spans * 2 * grid[:-1]).sum()) - 1
    assert straightness(faster, faster.plan(grid=grid.tolist()), 3) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_the_trajectory_ends_where_the_sampler_does(solver, rng):
    from pyflow.trajectories import _trajectory

    guided = flow_of(Spec(UNET, null_label=True))
    labels, seed = np.arange(4) % 3, int(rng.integers(2**31))
    plan = guided.plan(5, solver, "cosine")
    *_, (ended, states) = told = list(_trajectory(guided, guided.runner.denoiser, plan, 4, labels, 2.0, seed))
    made = guided.sample(4, steps=5, solver=solver, grid="cosine", label=labels.tolist(), guidance=2.0, seed=seed)
    np.testing.assert_allclose(states, made.states, atol=2e-5 * np.abs(made.states).max())
    assert (len(told), ended) == (6, 1.0)
    assert straightness(guided, plan, 4, label=labels, guidance=2.0, seed=seed) > 0


def test_what_draws_noise_anew_has_no_trajectory():
    drawn = flow()
    plan = drawn.spec.plan(uniform_grid(4), "renoise")
    assert straightness(drawn, plan, 2) is None
    assert "noise is drawn anew" in no_trajectory(drawn, plan)
    assert no_trajectory(drawn, drawn.plan(4)) == ""


def test_what_shows_no_trajectory_says_why():
    whole = flow()
    plan = whole.plan(3)
    whole.runner = SamplerRunner([WholePlan(plan, 1.0, lambda feed: [feed["noise"]])], (2,))
    assert straightness(whole, plan, 2) is None
    assert "runs whole steps or plans" in no_trajectory(whole, plan)
    told = flow_of(Spec(replace(UNET, extra=2)))
    assert straightness(told, told.plan(3), 2) is None
    assert "told what is kept" in no_trajectory(told, told.plan(3))
