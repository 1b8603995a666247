"""The networks: their sizes, what each input does to them, and that every weight learns."""

from dataclasses import replace

import pytest
import torch
from pyflow.training.recipes import UNET_1M, UNET_9M, UNET_36M
from tiny import POINTS, UNET, network
from torch.utils.flop_counter import FlopCounterMode

from pyflow.errors import InvalidInput
from pyflow.models import Attention, baked, build, parameters
from pyflow.spec import MLP, UNet

SIZES = {  # millions of parameters, and of multiply-adds for one 32x32 picture; at most 15% off what the name says
    "1.4M": (UNET_1M, 1.4, 1.383, 176),
    "9M": (UNET_9M, 9.0, 9.596, 1600),
    "36M": (UNET_36M, 36.0, 38.280, 6224),
}


def inputs(spec, batch: int = 4):
    shape = (spec.shape[0] + getattr(spec, "extra", 0), *spec.shape[1:])
    label = torch.arange(batch) % max(1, spec.classes)
    guidance = [1 + 3 * torch.rand(batch)] if spec.guided else []
    return torch.randn(batch, *shape), torch.rand(batch), torch.rand(batch), label, *guidance


@pytest.fixture
def seed(rng) -> int:
    return int(rng.integers(2**31))


@pytest.mark.parametrize(("spec", "named", "millions", "macs"), SIZES.values(), ids=SIZES.keys())
def test_the_sizes_that_this_project_speaks_of(spec, named, millions, macs):
    assert (spec.shape, spec.classes) == ((3, 32, 32), 10)
    with torch.device("meta"):
        net = build(spec)
        arguments = inputs(spec, batch=1)
    assert parameters(net) / 1e6 == pytest.approx(millions, abs=0.001)
    assert abs(millions / named - 1) < 0.15
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert net(*arguments).shape == (1, 3, 32, 32)
    assert counter.get_total_flops() / 2e6 == pytest.approx(macs, rel=0.01)


VARIANTS = {
    "unet": UNET,
    "two times": replace(UNET, times=2),
    "no classes": replace(UNET, classes=0),
    "extra channels": replace(UNET, extra=2),
    "not square": replace(UNET, shape=(3, 8, 12)),
    "no attention": replace(UNET, attention=()),
    "three levels": replace(UNET, multipliers=(1, 2, 3), blocks=2, attention=(8, 2)),
    "mlp": POINTS,
    "mlp, one time": MLP(shape=(5,), width=16, depth=1),
    "guided": replace(UNET, times=2, guided=True),
    "guided mlp": replace(POINTS, guided=True),
}
GUIDED = {name: spec for name, spec in VARIANTS.items() if spec.guided}


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("batch", [1, 3])
def test_the_prediction_has_the_shape_of_the_picture(spec, batch, seed):
    said = network(spec, seed)(*inputs(spec, batch))
    assert said.shape == (batch, *spec.shape)
    assert torch.isfinite(said).all()


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_the_network_looks_at(spec, seed):
    """x and s always, t with two times, the label with classes: each of them moves each picture, the others none."""
    net = network(spec, seed)
    x, s, t, label, *guidance = inputs(spec)
    with torch.no_grad():
        said = net(x, s, t, label, *guidance)

        def moved(*changed) -> list[bool]:
            return [not torch.equal(a, b) for a, b in zip(net(*changed, *guidance), said)]

        assert all(moved(x + 0.1, s, t, label))
        assert all(moved(x, 1 - s / 2, t, label))
        assert moved(x, s, 1 - t / 2, label) == [spec.times == 2] * 4
        if spec.classes:
            assert all(moved(x, s, t, (label + 1) % spec.classes))
            assert all(moved(x, s, t, torch.full_like(label, spec.classes))), "the null label equals a class"
        else:
            assert not any(moved(x, s, t, None))
        if getattr(spec, "extra", 0):
            beside = x.clone()
            beside[:, spec.shape[0] :] += 0.5
            assert all(moved(beside, s, t, label))
        if spec.guided:
            more = net(x, s, t, label, guidance[0] + 0.1)
            assert not any(torch.equal(a, b) for a, b in zip(more, said))


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_picture_does_not_see_its_neighbours(spec, seed):
    net = network(spec, seed)
    together = inputs(spec)
    with torch.no_grad():
        said = net(*together)
        alone = torch.cat([net(*(value[i : i + 1] for value in together)) for i in range(4)])
    torch.testing.assert_close(said, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_weight_gets_a_gradient(spec, seed):
    net = network(spec, seed)
    x, s, t, label, *guidance = inputs(spec, batch=8)
    label = torch.arange(8) % (spec.classes + 1)  # the null label too
    net(x, s, t, label, *guidance).square().mean().backward()
    silent = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not silent, f"seed {seed}: {silent}"
    if spec.classes:
        assert (net.condition.label.weight.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("spec", GUIDED.values(), ids=GUIDED.keys())
def test_a_baked_network_is_the_guided_one_at_one_guidance(spec, seed, rng):
    """A fresh state, both times and every label; and another guidance is told apart."""
    net, guidance = network(spec, seed), float(rng.uniform(0.5, 8))
    made = baked(net, guidance)
    *given, told = inputs(spec, batch=8)
    given[-1] = torch.arange(8) % (spec.classes + 1)
    with torch.no_grad():
        wanted, said = net(*given, torch.full_like(told, guidance)), made(*given)
        other = baked(net, 1.1 * guidance)(*given)
    assert made.spec == replace(spec, guided=False)
    # float32 sums in another order: 8e-7 at worst in 300 seeds.
    assert (said - wanted).norm() < 2e-6 * wanted.norm(), f"seed {seed}, guidance {guidance}"
    assert (other - wanted).norm() > 1e-4 * wanted.norm(), f"seed {seed}, guidance {guidance}"


def test_a_guided_network_wants_its_guidance_and_an_ordinary_one_has_none_to_bake(seed):
    *given, _ = inputs(GUIDED["guided"])
    with pytest.raises(InvalidInput, match="guidance is None; expected float32"):
        network(GUIDED["guided"], seed)(*given)
    with pytest.raises(InvalidInput, match="the network is not guided"):
        baked(network(UNET, seed), 2.0)


def test_a_derivative_along_a_direction_under_autocast_is_the_float32_one_to_bfloat16(seed):
    """What MeanFlow and flow maps take of a network, in the precision that a GPU trains in."""
    net = network(replace(UNET, times=2), seed)
    x, s, t, label = inputs(net.spec)
    directions = (torch.randn_like(x), torch.zeros_like(s), torch.ones_like(t))

    def derivative() -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.func.jvp(lambda *given: net(*given, label), (x, s, t), directions)[1].float()

    wanted = derivative()
    with torch.autocast("cpu", torch.bfloat16):
        came = derivative()
    assert (came - wanted).norm() < 0.05 * wanted.norm(), f"seed {seed}"


def test_a_fresh_unet_says_nothing(seed):
    """The last layers start at zero, so an untrained UNet's prediction is its last bias everywhere."""
    torch.manual_seed(seed)
    net = build(UNET)
    said = net(*inputs(UNET))
    assert torch.equal(said, net.leave.bias.reshape(1, -1, 1, 1).expand_as(said))


def test_attention_reaches_across_the_picture(seed):
    """One changed pixel changes the far corner only where a level attends."""
    far = replace(UNET, shape=(1, 32, 32), multipliers=(1,), attention=(32,))
    for spec, reaches in ((far, True), (replace(far, attention=()), False)):
        net = network(spec, seed)
        # The norms see the whole picture whatever the layers: take them out.
        for module in net.modules():
            for name, child in module.named_children():
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, torch.nn.Identity())
        net.middle[0].attention = torch.nn.Identity() if not reaches else net.middle[0].attention
        x, s, t, label = inputs(spec, batch=1)
        changed = x.clone()
        changed[..., 0, 0] += 1
        with torch.no_grad():
            moved = (net(changed, s, t, label) - net(x, s, t, label)).abs()[..., -1, -1]
        assert bool(moved.max() > 0) == reaches


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_the_formula_pixel_by_pixel(seed, heads):
    torch.manual_seed(seed)
    attention = Attention(8, heads)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 8, 3, 5)
    said = attention(x)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)  # each (picture, channel, pixel)
    wide, mixed = 8 // heads, []
    for own in (slice(head * wide, (head + 1) * wide) for head in range(heads)):
        weight = torch.einsum("bcp,bcr->bpr", q[:, own], k[:, own]).div(wide**0.5).softmax(dim=2)
        mixed.append(torch.einsum("bpr,bcr->bcp", weight, v[:, own]))
    expected = x + attention.out(torch.cat(mixed, dim=1).reshape(x.shape))
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [MLP(fastest_wave=5.0), UNet(channels=8, fastest_wave=5.0)], ids=repr)
def test_the_fastest_wave_turns_as_far_as_the_spec_says(network):
    told = build(network).condition.waves
    assert told.max().item() == pytest.approx(5.0)
    assert build(replace(network, fastest_wave=100.0)).condition.waves.min() == told.min()


def test_dropout_acts_in_training_only(seed):
    spec = replace(UNET, dropout=0.5)
    net, arguments = network(spec, seed), inputs(spec)
    with torch.no_grad():
        assert torch.equal(net(*arguments), net(*arguments))
        net.train()
        assert not torch.equal(net(*arguments), net(*arguments))


def test_the_same_seed_builds_the_same_network(seed):
    first, second = network(UNET, seed).state_dict(), network(UNET, seed).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_large_unet_takes_other_sizes_of_the_same_network():
    """Every recipe's network fits its own shape at twice the side: nothing in it knows the height."""
    spec = replace(UNET_1M, shape=(3, 64, 64), attention=(32, 16, 8))
    with torch.device("meta"):
        assert parameters(build(spec)) == parameters(build(UNET_1M))
        assert isinstance(spec, UNet)
