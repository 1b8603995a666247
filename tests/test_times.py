"""The times that objectives take: they fall as their law says, and networks are asked at the states of theirs."""

import math

import numpy as np
import pytest
import torch
from exact import SIZE, draw, draw_labelled
from pyflow.training.objectives import OBJECTIVES
from pyflow.training.settings import TIMES, Options
from pyflow.training.times import draw_interval, draw_time
from torch import Tensor, nn

from pyflow.core import PATHS, VELOCITY
from pyflow.spec import MLP, Spec

SPEC = Spec(MLP(shape=(SIZE,)))
OPTIONS = Options()


def kolmogorov(drawn: Tensor, cumulative) -> float:
    """The largest gap between the share of draws below t and the one expected, in units of 1/sqrt(draws).

    2.6 is passed by chance three times in a million.
    """
    ordered = np.sort(drawn.double().numpy())
    steps = np.arange(len(ordered) + 1) / len(ordered)
    expected = cumulative(ordered)
    gap = max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max())
    return float(gap * math.sqrt(len(ordered)))


def u_shaped(t: np.ndarray) -> np.ndarray:
    """The integral of p ~ e^4t + e^4(1-t)."""
    return (np.exp(4 * t) - 1 + math.exp(4) - np.exp(4 * (1 - t))) / (2 * (math.exp(4) - 1))


def logit_normal(mean: float, deviation: float):
    scores = lambda t: (np.log(t / (1 - t)) - mean) / deviation  # noqa: E731
    return lambda t: torch.special.ndtr(torch.from_numpy(scores(np.clip(t, 1e-9, 1 - 1e-9)))).numpy()


LAWS = {
    "uniform": lambda t: t,
    "u-shaped": u_shaped,
    "logit-normal": logit_normal(0, 1),
}


@pytest.mark.parametrize("times", TIMES)
def test_times_fall_as_their_law_says(times, seed):
    drawn = draw_time(torch.rand(20_000, dtype=torch.float64), times)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    for law, cumulative in LAWS.items():
        assert (kolmogorov(drawn, cumulative) < 2.6) == (law == times), f"seed {seed}: {times} beside {law}"
    ends = draw_time(torch.tensor([0.0, 1.0]), times)
    assert ends.isfinite().all()
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_intervals_fill_the_triangle_evenly(seed):
    s, t = draw_interval(draw(20_000), OPTIONS)
    assert (s <= t).all()
    assert kolmogorov(s, lambda s: 1 - (1 - s) ** 2) < 2.6, f"seed {seed}"
    assert kolmogorov(t, np.square) < 2.6, f"seed {seed}"
    assert kolmogorov(s / t, lambda share: share) < 2.6, f"seed {seed}: s is not even in 0..t"


def test_meanflow_s_intervals_are_those_of_public_code_in_our_time(seed):
    """There t=1 is noise, t ~ logit-normal(-.6, 1.6) and r ~ logit-normal(-4, 1.6), in order."""
    coins = torch.rand(20_000, 2, dtype=torch.float64)
    late, early = (torch.special.ndtri(1 - coins[:, i]) * 1.6 + mean for i, mean in enumerate((-0.6, -4.0)))
    late, early = late.sigmoid(), early.sigmoid()
    s, t = draw_interval(draw(20_000)._replace(coins=coins), Options(times="logit-normal"))
    torch.testing.assert_close(s, 1 - torch.maximum(late, early))
    torch.testing.assert_close(t, 1 - torch.minimum(late, early))


class Recorder(nn.Module):
    """Keeps what it was asked, says zero."""

    def forward(self, x, s, t, label):
        self.x, self.s, self.t, self.label = x, s, t, label
        return torch.zeros_like(x)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["cfm", "ddpm", "reflow", "grid", "lines", "naive"])
def test_the_network_is_asked_at_the_state_of_its_time(seed, name, path):
    net, batch = Recorder(), draw_labelled(64)
    losses = OBJECTIVES[name].loss(net, Spec(SPEC.network, path, VELOCITY), batch, OPTIONS)
    assert torch.equal(net.s, net.t)
    assert torch.equal(losses.s, net.s)
    torch.testing.assert_close(net.x, PATHS[path].mix(batch.image, batch.noise, net.s[:, None]))
    assert net.label is batch.label


def asked(name: str, count: int, options: Options = OPTIONS) -> Tensor:
    net = Recorder()
    OBJECTIVES[name].loss(net, SPEC, draw(count), options)
    return net.s


@pytest.mark.parametrize("name", ["cfm", "ddpm", "lines"])
def test_times_are_even_where_nothing_else_is_told(name, seed):
    assert kolmogorov(asked(name, 20_000), lambda t: t) < 2.6, f"seed {seed}"


@pytest.mark.parametrize("count", [1, 2, 7, 20_000])
def test_reflow_spends_its_share_on_the_jump_and_the_rest_at_both_ends(seed, count):
    t = asked("reflow", count, Options(times="u-shaped", jump=0.5))
    assert (t == 0).sum() == count // 2
    assert (t[: count // 2] == 0).all(), "the jumps are the first of the batch"
    if count > 1000:
        assert kolmogorov(t[t > 0], u_shaped) < 2.6, f"seed {seed}"


def test_the_naive_baseline_sees_noise_alone(seed):
    assert (asked("naive", 64) == 0).all()


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_the_grid_is_visited_evenly_where_euler_does(steps, seed):
    visited, counts = asked("grid", 12_000, Options(grid=steps)).unique(return_counts=True)
    torch.testing.assert_close(visited, torch.arange(steps).double() / steps)
    assert (counts - 12_000 / steps).abs().max() < 5 * math.sqrt(12_000 / steps), f"seed {seed}: {counts}"
