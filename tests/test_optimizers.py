"""What moves the weights: each by its formula, and how fast."""

import math
from dataclasses import replace

import pytest
import torch
from pyflow.training.averages import averages
from pyflow.training.optimizers import optimizers, rate, set_rate
from pyflow.training.weighting import LearnedWeight
from tiny import UNET, network
from tiny_runs import POINTS, RECIPE

RUN = replace(RECIPE, steps=100, warmup=0.1, learning_rate=0.02, weight_decay=0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_schedule_rises_and_falls_as_it_says(schedule):
    rates = [rate(step, replace(RUN, schedule=schedule)) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    left = [(100 - step) / 91 for step in range(10, 100)]
    expected = {
        "linear": left,
        "cosine": [0.5 - 0.5 * math.cos(math.pi * share) for share in left],
        "constant": [1.0] * 90,
    }
    assert rates[10:] == pytest.approx(expected[schedule])
    assert all(0 < value <= 1 for value in rates)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (2, 1.0), (7, 0.0), (100, 1.0)])
def test_every_step_of_every_run_moves(steps, warmup):
    for schedule in ("linear", "cosine", "constant"):
        setting = replace(RUN, steps=steps, warmup=warmup, schedule=schedule)
        assert all(0 < rate(step, setting) <= 1 for step in range(steps))


def names(net, optimizer) -> set[str]:
    held = {p.data_ptr() for group in optimizer.param_groups for p in group["params"]}
    return {name for name, p in net.named_parameters() if p.data_ptr() in held}


@pytest.mark.parametrize("kind", [UNET, replace(POINTS, depth=3)], ids=["unet", "mlp"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
def test_muon_moves_hidden_matrices_as_torchs_does_and_nothing_else(rng, kind, layout):
    seed = int(rng.integers(2**31))
    net = network(kind, seed).to(memory_format=layout)
    adamw, muon = optimizers(net, None, replace(RUN, optimizer="muon"), kind.shape[0])
    hidden = names(net, muon)
    assert hidden | names(net, adamw) == {name for name, _ in net.named_parameters()}
    assert not hidden & names(net, adamw)
    for name, p in net.named_parameters():
        outer = name.startswith(("enter", "leave", "condition.label"))
        assert (name in hidden) == (p.ndim > 1 and not outer), name
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    set_rate([adamw, muon], 0.01)
    muon.step()
    for name, p in net.named_parameters():
        if name not in hidden:
            assert torch.equal(p, before[name])
            continue
        moved = (p.detach() - before[name] * (1 - 0.01 * 0.1)).flatten(1)
        moved /= 0.01 * 0.2 * max(moved.shape) ** 0.5
        assert 0.6 < torch.linalg.svdvals(moved).median() < 1.3, (name, seed)  # Newton-Schulz stops that near to 1
        assert (moved * p.grad.flatten(1)).sum() < 0  # downhill
        reference = p.grad.flatten(1).clone()
        twin = torch.nn.Parameter(before[name].flatten(1).clone())
        twin.grad = reference
        torch.optim.Muon([twin], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
        torch.testing.assert_close(p.detach().flatten(1), twin.detach(), rtol=1e-3, atol=1e-3)


def test_the_learned_weight_does_not_decay():
    net, weight = network(POINTS, 0), LearnedWeight()
    (adamw,) = optimizers(net, weight, RUN, 2)
    decays = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in net.parameters()} == {0.1}
    assert {decays[id(p)] for p in weight.parameters()} == {0.0}


def test_averages_follow_at_their_own_pace(rng):
    """Of a weight that jumps once, half of the jump is left after a half-life, once they are no longer young."""
    net = network(POINTS, int(rng.integers(2**31)))
    setting = replace(RUN, steps=1000, half_lives=(0.01, 0.1))
    slow = averages(net, setting)
    start = net.leave.bias.detach().clone()
    with torch.no_grad():
        net.leave.bias += 1
    young = 10_000
    for step in range(young, young + 100):
        for average in slow:
            average.follow(net, step)
    left = [float((1 - (average.model.leave.bias.detach() - start)).mean()) for average in slow]
    assert left == pytest.approx([0.5**10, 0.5], abs=1e-4)
    assert [average.folder for average in slow] == ["half-life-0.01", "half-life-0.1"]
    assert not any(average.model.training for average in slow)
