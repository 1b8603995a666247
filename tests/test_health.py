"""The signs of health against networks of which they are known."""

import math

import numpy as np
import pytest
import torch
from pyflow.training.batch import COINS, Batch
from pyflow.training.health import jvp_norm, plain_features, semigroup_error, small_frechet
from pyflow.training.preview import states
from tiny import POINTS, UNET, network

from pyflow.engines import eager
from pyflow.sampler import Flow
from pyflow.spec import Spec

SPEC = Spec(POINTS)


def batch(rng, count: int = 256) -> Batch:
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise, image = (torch.randn(count, 2, generator=generator) for _ in range(2))
    return Batch(noise, torch.zeros(count, dtype=torch.int64), image, torch.rand(count, COINS, generator=generator))


def exact(x, s, t, label):
    """The average velocity over s..t of dx/dt = -x: X_st(x) = e^(s-t) x."""
    gap = (t - s)[:, None]
    return torch.where(gap == 0, -x, ((-gap).exp() - 1) / torch.where(gap == 0, torch.ones_like(gap), gap) * x)


def test_an_exact_flow_map_has_no_semigroup_error(rng):
    probed = batch(rng)
    assert semigroup_error(exact, SPEC, probed) < 1e-5

    def instantaneous(x, s, t, label):
        return -x

    assert semigroup_error(instantaneous, SPEC, probed) > 0.05


def test_the_jvp_norm_is_that_of_finite_differences(rng):
    """Along x_s, which moves by image - noise, with t fixed: in float64 of a network of any weights."""
    net, probed = network(POINTS, int(rng.integers(2**31))).double(), batch(rng)
    probed = probed.each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    s, t = probed.coins[:, :2].sort(1).values.unbind(1)

    def said(shift: float) -> torch.Tensor:
        at = (s + shift)[:, None]
        with torch.no_grad():
            return net((1 - at) * probed.noise + at * probed.image, s + shift, t, probed.label)

    expected = ((said(1e-5) - said(-1e-5)) / 2e-5).square().mean().sqrt().item()
    assert jvp_norm(net, SPEC, probed) == pytest.approx(expected, rel=1e-4)
    assert jvp_norm(lambda x, s, t, label: torch.full_like(x, 3.0) + 0 * x, SPEC, probed) == 0


def test_the_small_distance_grows_with_what_is_wrong(rng):
    name, features = plain_features((1, 8, 8))
    assert name == "pixels-4x4"
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    real, same = (torch.randn(256, 1, 8, 8, generator=generator) for _ in range(2))
    near, shifted = small_frechet(same, real, features), small_frechet(same + 1, real, features)
    assert 0 < near < 0.5
    assert shifted == pytest.approx(near + 16, abs=2)  # sixteen pooled pixels, each one off
    assert math.isnan(small_frechet(same.fill_(float("nan")), real, features))
    assert plain_features((16, 4, 4))[1](torch.zeros(2, 16, 4, 4)).shape == (2, 16)
    assert plain_features((2,))[0] == "points"


@pytest.mark.parametrize(("kind", "solver"), [(UNET, "ddpm"), (POINTS, "euler")], ids=["unet", "points"])
def test_samples_are_those_of_the_sampler(kind, solver):
    """Picture by picture: the same noise, whatever the batch, and the spec's own plan."""
    spec = Spec(kind, "vp-cosine", "noise", solver) if solver == "ddpm" else Spec(kind)
    net = network(kind, 3)
    labels = torch.arange(5) % 3
    like = Batch(torch.empty(5, *kind.shape), labels, torch.empty(5, *kind.shape), torch.empty(5, COINS))
    flow = Flow(eager.runner(net, spec), spec, eager.BACKEND, "none")
    expected = flow.sample(5, steps=3, label=labels.tolist(), seed=0).states
    seen = states(net, spec, 3, like, size=2).numpy()
    np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-4)
