"""The derivative along a direction that flow maps learn from: float32 under autocast, with the dropout mask of its
value, and the same compiled. What public code gets wrong in it, planted, is refused."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from exact import SIZE, draw
from planted import Change, Mutant, changed, planted
from pyflow.training import flow_maps
from pyflow.training.batch import COINS, Batch
from pyflow.training.objectives import OBJECTIVES, Loss
from pyflow.training.settings import Options
from tiny import UNET
from torch import Tensor, nn

from pyflow.models import random_network
from pyflow.spec import MLP, Spec

PICTURES = Spec(replace(UNET, times=2))
REVERSED = Change("_jvp", "not torch.compiler.is_compiling()", "False")
MODES = pytest.mark.parametrize(
    "mode", [(), (REVERSED,)], ids=["forward", "reverse twice, as where it is made a graph"]
)


def pictures(count: int) -> Batch:
    noise, image = torch.randn(2, count, *UNET.shape)
    return Batch(noise, torch.randint(UNET.classes, (count,)), image, torch.rand(count, COINS))


# ---- float32 under autocast
def assert_float32(derivative: Callable, seed: int) -> None:
    """Under autocast an attention UNet's value and rate are those without it: bfloat16 is off by 1e-2."""
    net, batch = random_network(PICTURES.network, seed), pictures(4)
    s, t = batch.coins[:, :2].sort(1).values.unbind(1)
    direction = (batch.image, torch.ones_like(s), torch.zeros_like(t))
    phi = lambda x, s, t: net(x, s, t, batch.label)  # noqa: E731
    plain = derivative(phi, (batch.noise, s, t), direction)
    with torch.autocast("cpu", torch.bfloat16):
        cast = derivative(phi, (batch.noise, s, t), direction)
    for what, found, expected in zip(("value", "rate"), cast, plain):
        off = ((found - expected).abs().max() / expected.abs().max()).item()
        assert found.dtype == torch.float32, f"seed {seed}: the {what} is {found.dtype}"
        assert off < 1e-5, f"seed {seed}: the {what} is off by {off}"


@MODES
def test_autocast_leaves_value_and_rate_in_float32(mode, seed):
    assert_float32(changed(flow_maps, *mode)["_jvp"], seed)


@MODES
def test_tangents_in_bfloat16_are_noticed(mode, seed):
    bug = Change("_jvp", "enabled=False", "enabled=True")
    with pytest.raises(AssertionError, match="seed"):
        assert_float32(changed(flow_maps, *mode, bug)["_jvp"], seed)


# ---- one dropout mask for the value and its rate
SHARE, (A, B, C) = 0.3, (0.7, -0.4, 0.9)


class Fading(nn.Module):
    """Dropout of a x + b s + c t, one number a sample: dropped, its value and its rate are zero together."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(SHARE)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.dropout(A * x + B * s[:, None] + C * t[:, None])


def missed(name: str, gain: float, other: float, x: Tensor, v: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """What is squared where the differentiated call was dropped (gain 0) or not, and so the other call."""
    gap, said, here = t - s, gain * (A * x + B * s + C * t), other * (A * x + (B + C) * s)
    if name == "lsd":
        return said + gap * gain * C - other * (A * (x + gap * said) + (B + C) * t)
    if name == "esd":
        return gap * gain * (A * here + B) - said + here
    tangent = here if name == "improved-meanflow" else v
    return said - gap * gain * (A * tangent + B) - v


def assert_one_mask(loss: Loss, name: str, seed: int) -> None:
    """Each sample's loss is that of one of the ways in which its calls may have been dropped, and each way occurs."""
    noise, image = torch.randn(2, 512, 1, dtype=torch.float64)
    batch = Batch(noise, torch.zeros(512, dtype=torch.int64), image, torch.rand(512, COINS, dtype=torch.float64))
    losses = loss(Fading(), Spec(MLP(shape=(1,), times=2)), batch, Options(diagonal=0.25, adaptive=0.0))
    s, t = losses.s[128:], losses.t[128:]
    x, v = (1 - s) * noise[128:, 0] + s * image[128:, 0], (image - noise)[128:, 0]
    ways = list(product((0.0, 1 / (1 - SHARE)), repeat=2))
    expected = torch.stack([missed(name, gain, other, x, v, s, t).square() for gain, other in ways])
    off, way = (losses.each[128:].double() - expected).abs().min(0)
    assert off.max() < 1e-4, f"seed {seed}: {int((off > 1e-4).sum())} samples have a value and a rate of two masks"
    assert {ways[index][0] for index in way.tolist()} == {0.0, 1 / (1 - SHARE)}, f"seed {seed}: nothing is dropped"


DIFFERENTIATED = [name for name, each in OBJECTIVES.items() if each.differentiates]
TWO_MASKS = {
    "lsd": Mutant("lsd", "lsd", "return mean +", "return phi(x, s, t) +"),
    "esd": Mutant("esd", "esd", "* rate - mean", "* rate - phi(x, s, t)"),
} | {
    name: Mutant(name, "_mean_flow", "cat([said, mean])", "cat([said, mean_velocity(there)(*at)])")
    for name in ("meanflow", "improved-meanflow")
}
assert TWO_MASKS.keys() == set(DIFFERENTIATED)


@MODES
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_value_and_rate_share_a_dropout_mask(name, mode, seed):
    assert_one_mask(changed(flow_maps, *mode)[name.replace("-", "_")], name, seed)


@MODES
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_a_mask_for_each_is_noticed(name, mode, seed):
    with pytest.raises(AssertionError, match="two masks"):
        assert_one_mask(planted(flow_maps, TWO_MASKS[name], *mode), name, seed)


# ---- compiled
SPEC = Spec(MLP(shape=(SIZE,), classes=2, times=2))


def to_compile(seed: int) -> tuple[Spec, nn.Module, Batch]:
    """The smallest network, which compiles in seconds, and a batch in float32."""
    spec, batch = replace(SPEC, network=replace(SPEC.network, width=8, depth=1)), draw(64)
    batch = Batch(batch.noise.float(), batch.label, batch.image.float(), batch.coins.float())
    return spec, random_network(spec.network, seed), batch


@pytest.mark.slow
def test_compiled_in_bfloat16_loss_and_gradient_are_nearly_the_same(seed):
    """Of MeanFlow, whose weight and derivative stay in float32."""
    spec, net, batch = to_compile(seed)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return OBJECTIVES["meanflow"].loss(net, spec, batch, Options(adaptive=0.5)).each.mean()

    found = []
    for each in (loss, torch.compile(loss, fullgraph=True)):
        value = each()
        slopes = torch.autograd.grad(value, list(net.parameters()))
        found.append((value.detach(), torch.cat([one.flatten() for one in slopes])))
    (eager, slope), (compiled, other) = found
    torch.testing.assert_close(compiled, eager, rtol=1e-2, atol=1e-3, msg=lambda m: f"seed {seed}: {m}")
    assert (other - slope).norm() < 0.03 * slope.norm(), f"seed {seed}: {(other - slope).norm() / slope.norm()}"


def slopes_agree(net: nn.Module, spec: Spec, batch: Batch, seed: int, backend: str = "inductor") -> None:
    def loss() -> Tensor:
        return OBJECTIVES["lsd"].loss(net, spec, batch, Options()).each.mean()

    made = torch.compile(loss, fullgraph=True, backend=backend)
    eager, compiled = (torch.autograd.grad(each(), list(net.parameters())) for each in (loss, made))
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5, msg=lambda m: f"seed {seed}: {m}")


@pytest.mark.slow
def test_compiled_the_gradient_is_the_same(seed):
    spec, net, batch = to_compile(seed)
    slopes_agree(net, spec, batch, seed)


@pytest.mark.slow
def test_compiled_the_gradient_of_an_attention_unet_is_the_same(seed):
    """The graph alone, traced and differentiated ahead of time. Inductor makes 14,000 lines of C++ of it, which were
    not compiled after ten minutes on a busy core."""
    slopes_agree(random_network(PICTURES.network, seed), PICTURES, pictures(8), seed, "aot_eager")
