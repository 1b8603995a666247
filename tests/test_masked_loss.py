"""The loss of networks that see the mask: what they are told, and what they are asked of the hole and of the whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from exact import assert_zero
from pyflow.training import batch as batches
from pyflow.training import objectives
from pyflow.training.batch import COINS, Batch
from pyflow.training.objectives import OBJECTIVES, objective
from pyflow.training.settings import Options
from tiny import UNET, network
from torch import Tensor, nn

from pyflow import masks as mask_files
from pyflow.core import IMAGE, NOISE, VELOCITY
from pyflow.errors import InvalidInput
from pyflow.spec import Spec

SEEING = replace(UNET, extra=2)
FILLS = {
    "cfm": (VELOCITY, "linear"),
    "ddpm": (NOISE, "vp-linear"),
    "reflow": (VELOCITY, "linear"),
    "grid": (VELOCITY, "linear"),
    "lines": (IMAGE, "linear"),
    "naive": (IMAGE, "linear"),
}


def drawn(count: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Pictures of UNET's shape, three quarters of them with a hole."""
    image = torch.randn(count, *UNET.shape, dtype=dtype)
    holes = torch.from_numpy(mask_files.draw("mixed", 8, 8, count, seed=int(torch.randint(2**31, ())))).to(dtype)
    holes[::4] = 1
    coins = torch.rand(count, COINS, dtype=dtype)
    return Batch(torch.randn_like(image), torch.randint(3, (count,)), image, coins, holes)


# ---- a law whose pixels hang together: the exact network, given what is kept
SIDE, MEAN, COMMON, OWN = 3, 0.3, 0.8, 0.35
PIXELS = SIDE * SIDE
COVARIANCE = COMMON**2 * torch.ones(PIXELS, PIXELS, dtype=torch.float64) + OWN**2 * torch.eye(PIXELS).double()


def draw_law(count: int) -> Batch:
    shape = (count, 1, SIDE, SIDE)
    common = torch.randn(count, 1, 1, 1, dtype=torch.float64)
    image = MEAN + COMMON * common + OWN * torch.randn(shape, dtype=torch.float64)
    mask = (torch.rand(shape) < 0.6).double()
    mask[:, 0, 0, 0] = 1  # no hole is empty
    coins = 0.98 * torch.rand(count, COINS, dtype=torch.float64)  # at t=1 there is no noise left to tell
    return Batch(torch.randn_like(image), torch.zeros(count, dtype=torch.int64), image, coins, mask)


class Filling(nn.Module):
    """E[velocity | x_t, what is kept, the mask], and a part bent by all that the network is told."""

    def __init__(self) -> None:
        super().__init__()
        self.bend = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, joined: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        x, kept, mask = joined.unbind(1)
        flat, hole, time = x.flatten(1), mask.flatten(1), t[:, None]
        seen = torch.where(hole > 0, flat, kept.flatten(1))
        gain = torch.where(hole > 0, time, 1.0)
        noisy = torch.diag_embed(torch.where(hole > 0, (1 - time).square(), 0.0))
        total = gain[:, :, None] * COVARIANCE * gain[:, None, :] + noisy
        missing = torch.linalg.solve(total, seen - gain * MEAN)
        image = MEAN + ((gain * missing) @ COVARIANCE)
        exact = ((image - flat) / (1 - time)).reshape(x.shape)
        bends = (torch.ones_like(x), x, mask * x, kept, mask)
        return (exact + torch.stack(bends, dim=-1) @ self.bend)[:, None]


def slopes(region: float, loss=objectives.cfm) -> Tensor:
    net, options = Filling(), Options(region=region)
    spec = Spec(replace(SEEING, shape=(1, 8, 8)))
    each = [torch.autograd.grad(loss(net, spec, draw_law(512), options).each.mean(), net.bend)[0] for _ in range(48)]
    return torch.stack(each)


def assert_least(region: float, seed: int) -> None:
    for bend, slope in enumerate(slopes(region).T):
        assert_zero(slope, 0.2, f"seed {seed}, the gradient of bend {bend}")


@pytest.mark.parametrize("region", [0.0, 0.3, 1.0])
def test_the_loss_is_least_where_the_network_says_what_is_likely_given_what_is_kept(region, seed):
    assert_least(region, seed)


WRONG = {
    "mask inverted": lambda image, mask: torch.cat([(1 - mask) * image, 1 - mask], dim=1),
    "hole told": lambda image, mask: torch.cat([image, mask], dim=1),
    "hole told and nothing else": lambda image, mask: torch.cat([mask * image, mask], dim=1),
    "hole and rest exchanged": lambda image, mask: torch.cat([mask * image, 1 - mask], dim=1),
}


@pytest.mark.parametrize("wrong", [*WRONG][:3])  # the last is a task of its own, whose answer is as exact
def test_a_network_that_is_told_something_else_is_noticed(wrong, seed, monkeypatch):
    monkeypatch.setattr(batches, "told", WRONG[wrong])
    with pytest.raises(AssertionError, match="expected 0"):
        assert_least(0.3, seed)


# ---- the weight of the hole, by a second formula
def weighted(missed: np.ndarray, mask: np.ndarray, region: float) -> list[float]:
    """Sample by sample, element by element."""
    losses = []
    for each, hole in zip(missed, mask[:, 0]):
        inside = [channel[hole == 1] for channel in each]
        losses.append((1 - region) * np.mean(each**2) + region * np.mean(np.square(inside)))
    return losses


def assert_weighted(name: str, region: float, seed: int, channels: int = 3) -> None:
    prediction, path = FILLS[name]
    batch = drawn(24, torch.float64)
    batch = batch._replace(image=batch.image.repeat(1, channels, 1, 1), noise=batch.noise.repeat(1, channels, 1, 1))
    spec = Spec(replace(UNET, shape=(channels, 8, 8), extra=channels + 1), path, prediction)
    said = torch.randn_like(batch.image)
    losses = OBJECTIVES[name].loss(lambda x, s, t, label: said, spec, batch, Options(region=region))
    wanted = {VELOCITY: batch.image - batch.noise, NOISE: batch.noise, IMAGE: batch.image}[prediction]
    missed = (said - wanted).numpy()
    expected = weighted(missed, batch.mask.numpy(), region)
    np.testing.assert_allclose(losses.each.numpy(), expected, rtol=1e-5, err_msg=f"seed {seed}")
    np.testing.assert_allclose(losses.square.numpy(), (missed**2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(losses.each[::4], losses.square[::4], rtol=1e-5)  # where nothing is kept


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("region", [0.0, 0.3, 1.0])
def test_the_hole_has_its_own_share_of_the_loss(name, region, seed):
    assert_weighted(name, region, seed)


def test_a_weight_on_what_is_kept_is_noticed(seed, monkeypatch):
    right = objectives._squares
    turned = lambda missed, batch, options: right(missed, batch._replace(mask=1 - batch.mask), options)  # noqa: E731
    monkeypatch.setattr(objectives, "_squares", turned)
    with pytest.raises(AssertionError):
        assert_weighted("cfm", 0.3, seed)


def test_a_sum_over_the_hole_is_noticed(seed, monkeypatch):
    def summed(missed: Tensor, batch: Batch, options: Options) -> tuple[Tensor, Tensor]:
        whole, hole = missed.square().mean((1, 2, 3)), (batch.mask * missed.square()).mean((1, 2, 3))
        return (1 - options.region) * whole + options.region * hole, whole

    monkeypatch.setattr(objectives, "_squares", summed)
    with pytest.raises(AssertionError):
        assert_weighted("cfm", 0.3, seed)


def assert_given(name: str, seed: int) -> None:
    """The state is x_t everywhere; beside it no value of the hole."""
    given, (prediction, path), batch = [], FILLS[name], drawn(16)

    def net(x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        given.append((x, t))
        return torch.zeros_like(x[:, :1])

    spec = Spec(SEEING, path, prediction)
    OBJECTIVES[name].loss(net, spec, batch, Options())
    ((joined, t),) = given
    x, kept, mask = joined.split(1, dim=1)
    torch.testing.assert_close(x, spec.math_path.mix(batch.image, batch.noise, t[:, None, None, None]))
    assert torch.equal(mask, batch.mask)
    assert torch.equal(kept, torch.where(batch.mask == 1, 0.0, batch.image))
    other = batch._replace(image=torch.where(batch.mask == 1, torch.randn_like(batch.image), batch.image))
    OBJECTIVES[name].loss(net, spec, other, Options())
    assert torch.equal(given[1][0][:, 1:], joined[:, 1:]), f"seed {seed}: the hole's values are told"


@pytest.mark.parametrize("name", FILLS)
def test_the_network_is_given_the_state_what_is_kept_and_the_mask(name, seed):
    assert_given(name, seed)


@pytest.mark.parametrize("wrong", WRONG)
def test_something_else_beside_the_state_is_noticed(wrong, seed, monkeypatch):
    monkeypatch.setattr(batches, "told", WRONG[wrong])
    with pytest.raises(AssertionError):
        assert_given("cfm", seed)


@pytest.mark.parametrize("name", FILLS)
def test_parts_of_a_batch_have_the_gradient_of_the_whole(name, seed):
    prediction, path = FILLS[name]
    net, batch, spec = network(SEEING, 3).double(), drawn(8, torch.float64), Spec(SEEING, path, prediction)
    options = Options(jump=0.5)

    def gradient(parts: int) -> Tensor:
        net.zero_grad()
        for index in range(parts):
            (OBJECTIVES[name].loss(net, spec, batch.part(index, parts), options).each.mean() / parts).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(4), gradient(1), rtol=1e-6, atol=1e-9)


def test_the_loss_is_one_graph(seed):
    """What a GPU's recipes compile: nothing of the joining or of the hole's share leaves it."""
    net, batch, spec = network(SEEING, 3), drawn(4), Spec(SEEING)
    options = Options(region=0.3)
    torch.compiler.reset()
    traced = torch.compile(objectives.cfm, fullgraph=True, backend="eager")
    expected = objectives.cfm(net, spec, batch, options)
    torch.testing.assert_close(traced(net, spec, batch, options).each, expected.each)


# ---- what is refused
@pytest.mark.parametrize("name", sorted({*OBJECTIVES} - {*FILLS}))
def test_other_methods_see_no_mask(name):
    spec = Spec(replace(SEEING, times=2 if OBJECTIVES[name].two_times else 1))
    with pytest.raises(InvalidInput, match=f"the network sees a mask; {name} expected one that sees none: cfm, ddpm, "):
        objective(name, spec, Options())


def test_pools_know_no_masks():
    with pytest.raises(InvalidInput, match="pools know no classes and no masks"):
        objective("cfm", Spec(replace(SEEING, classes=0)), Options(pooled=True))
