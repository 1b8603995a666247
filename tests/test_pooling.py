"""Pooled targets: the same state, the mean of what could have led to it, no other minimiser, and one pool for all parts
of a batch."""

from dataclasses import replace

import pytest
import torch
from pyflow.training.batch import Batch, over
from pyflow.training.objectives import OBJECTIVES, objective
from pyflow.training.pooling import pooled
from pyflow.training.settings import Options
from tiny_runs import POOLED, run
from torch import Tensor

from pyflow import checkpoint
from pyflow.core import LINEAR, PATHS, VP_COSINE
from pyflow.errors import InvalidInput
from pyflow.models import random_network
from pyflow.spec import MLP, Spec


def points(seed: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    noise, image = (torch.randn(count, 2, generator=generator) for _ in range(2))
    return Batch(noise, torch.zeros(count, dtype=torch.int64), 2 * image + 1, torch.rand(count, 4, generator=generator))


@pytest.mark.parametrize("name", sorted(PATHS))
def test_each_is_the_softmax_over_the_images_of_the_batch(rng, name):
    seed, path = int(rng.integers(2**31)), PATHS[name]
    batch = points(seed, 257)
    t = 0.97 * batch.coins[:, 0].double()
    image, noise, at = batch.image.double(), batch.noise.double(), over(t, batch.image)
    x, alpha, sigma = path.mix(image, noise, at), path.alpha(at), path.sigma(at)
    shares = (-(x[:, None] - alpha[:, None] * image).square().sum(2) / (2 * sigma**2)).softmax(1)
    found = pooled(batch, path, t.float())
    expected = shares @ image
    assert torch.allclose(found.image.double(), expected, atol=2e-3), f"seed {seed}"
    assert torch.allclose(found.noise.double(), (x - alpha * expected) / sigma, atol=2e-2), f"seed {seed}"
    again = path.mix(found.image, found.noise, at.float())
    assert torch.allclose(again.double(), x, atol=1e-4), f"seed {seed}: the states moved"


def test_a_state_that_has_arrived_tells_its_own_image(rng):
    seed = int(rng.integers(2**31))
    batch = points(seed, 100)
    found = pooled(batch, LINEAR, torch.linspace(0.9985, 1, 100))
    assert torch.equal(found.image, batch.image), f"seed {seed}"
    assert torch.equal(found.noise, batch.noise), f"seed {seed}"


def test_autocast_leaves_the_distances_in_float32(rng):
    seed = int(rng.integers(2**31))
    batch = points(seed, 200)
    t = 0.9 * batch.coins[:, 0]
    plain = pooled(batch, VP_COSINE, t)
    with torch.autocast("cpu", torch.bfloat16):
        cast = pooled(batch, VP_COSINE, t)
    assert torch.equal(plain.image, cast.image), f"seed {seed}"


@pytest.mark.parametrize("name", ["cfm", "lsd", "psd-midpoint", "esd", "meanflow", "improved-meanflow"])
def test_the_velocity_of_a_gaussian_is_still_the_minimiser(rng, name):
    """Image N(1, 4) in each coordinate: v(x, t) is linear in x. Of the loss there, a fortieth is left to chance."""
    seed = int(rng.integers(2**31))
    batch = points(seed, 4096)
    spec = Spec(MLP(times=1 if name == "cfm" else 2))

    class Exact(torch.nn.Module):
        def forward(self, x, s, t, label):
            at = over(s, x)
            variance = 4 * at**2 + (1 - at) ** 2
            return 1 + (4 * at - (1 - at)) / variance * (x - at)

    everything = Options() if name == "cfm" else Options(diagonal=1.0, adaptive=0.0 if "meanflow" in name else 1.0)
    each = {}
    for option in (False, True):
        options = replace(everything, pooled=option)
        each[option] = objective(name, spec, options).loss(Exact(), spec, batch, options).each.mean().item()
    assert each[True] < each[False] / 40, f"seed {seed}: {each}"


def test_pools_of_several_classes_are_refused():
    with pytest.raises(InvalidInput, match="pooled is True; expected False: pools know no classes"):
        objective("cfm", Spec(MLP(classes=3)), Options(pooled=True))


# ---- parts of a batch have the pool of the whole
def sum_of_parts(name: str, seed: int, count: int, part=Batch.part) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient of a batch in this many parts, in float64."""
    asked = OBJECTIVES[name]
    spec = Spec(MLP(width=8, depth=2, times=1 + asked.two_times), asked.paths[0], asked.predicts[0])
    options = Options(pooled=True, **({"diagonal": 0.5} if asked.two_times else {}))
    net = random_network(spec.network, seed).double()
    batch = points(seed, 64).each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    fits = objective(name, spec, options).loss
    loss = sum(fits(net, spec, part(batch, i, count), options).each.mean() / count for i in range(count))
    return loss, list(torch.autograd.grad(loss, list(net.parameters())))


def agrees(name: str, seed: int, count: int, part=Batch.part) -> None:
    (whole, slopes), (loss, others) = sum_of_parts(name, seed, 1), sum_of_parts(name, seed, count, part)
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6, msg=lambda m: f"seed {seed}: {m}")
    torch.testing.assert_close(others, slopes, rtol=1e-4, atol=1e-5, msg=lambda m: f"seed {seed}: {m}")


POOLS = [name for name, each in OBJECTIVES.items() if "pooled" in each.reads]


@pytest.mark.parametrize("name", POOLS)
def test_parts_of_a_batch_average_to_the_whole(name, rng):
    agrees(name, int(rng.integers(2**31)), 4)


@pytest.mark.parametrize("name", POOLS)
def test_parts_with_pools_of_their_own_are_noticed(name, rng):
    with pytest.raises(AssertionError, match="seed"):
        agrees(name, int(rng.integers(2**31)), 4, lambda batch, i, count: batch.part(i, count)._replace(whole=None))


def test_parts_of_parts_and_their_shares_have_the_whole_s_pool(rng):
    """As a process's part is cut again for accumulation, and its first share of it for the diagonal."""
    batch = points(int(rng.integers(2**31)), 64)
    part = batch.part(1, 2).part(0, 4)
    assert torch.equal(part.image, batch.image[1::8])
    assert torch.equal(part.pool, batch.image)
    first, rest = part.cut(0.25)
    assert torch.equal(torch.cat([first.image, rest.image]), part.image)
    assert torch.equal(first.pool, batch.image[:16])
    assert torch.equal(rest.pool, batch.image[16:])
    assert torch.equal(batch.cut(0.25)[0].pool, batch.image[:16])
    assert batch.part(0, 1) is batch, "a batch that is whole is not copied"


def test_accumulation_changes_nothing(tmp_path):
    """Of a run, but for rounding: without one pool it is another run after the first step."""
    for accumulate in (1, 4):
        run(tmp_path / str(accumulate), replace(POOLED, accumulate=accumulate))
    one, four = (checkpoint.load_state(tmp_path / name) for name in "14")
    for name in (name for name in one if name.startswith("net.")):
        torch.testing.assert_close(four[name], one[name], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
