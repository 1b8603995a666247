"""Pooled targets: the same state, the mean of what could have led to it, and no other minimiser."""

from dataclasses import replace

import pytest
import torch
from pyflow.training.batch import Batch, over
from pyflow.training.objectives import objective
from pyflow.training.pooling import pooled
from pyflow.training.settings import Options

from pyflow.core import LINEAR, PATHS, VP_COSINE
from pyflow.errors import InvalidInput
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
