"""The learned weight: it changes nothing at first, and ends at the logarithm of the loss."""

import math

import pytest
import torch
from pyflow.training.batch import Losses
from pyflow.training.weighting import LearnedWeight


def test_at_the_start_it_changes_nothing(rng):
    torch.manual_seed(int(rng.integers(2**31)))
    losses = Losses(*torch.rand(4, 64))
    assert torch.equal(LearnedWeight().weigh(losses), losses.each)


def test_it_ends_where_it_should_at_the_logarithm_of_the_loss(rng):
    """Losses between e^-3 and e^1 over (s, t), each with the noise of a sample."""
    seed = int(rng.integers(2**31))
    torch.manual_seed(seed)
    weight = LearnedWeight()
    optimizer = torch.optim.Adam(weight.parameters(), 1e-2)
    for _ in range(400):
        s, t = torch.rand(2, 1024)
        each = (4 * s * t - 3).exp() * torch.randn(1024).square()
        optimizer.zero_grad()
        weight.weigh(Losses(each, s, t, each)).mean().backward()
        optimizer.step()
    s, t = torch.rand(2, 2000)
    error = (weight(s, t) - (4 * s * t - 3)).square().mean().sqrt().item()
    assert error < 0.25, f"seed {seed}: w is off by {error}"


@pytest.mark.parametrize("size", [0.1, 3.0])
def test_the_network_s_gradient_is_divided_by_the_loss_that_is_usual(size):
    weight = LearnedWeight()
    torch.nn.init.constant_(weight.leave.bias, math.log(size))
    each = torch.full((8,), size, requires_grad=True)
    weight.weigh(Losses(each, torch.rand(8), torch.rand(8), each)).sum().backward()
    torch.testing.assert_close(each.grad, torch.full((8,), 1 / size))
    assert weight.leave.bias.grad.abs() < 1e-5  # e^-w L + w is least here
