"""The objectives: at the exact solution the loss is at its floor and its gradient is zero; times fall as told.

Those of flow maps have a file of their own; what holds for all of them is here.
"""

import inspect
import math
import sys
from dataclasses import fields, replace
from types import ModuleType

import pytest
import torch
from exact import (
    DEVIATION,
    LAW,
    SIZE,
    Instant,
    Straight,
    assert_solved,
    draw,
    draw_pairs,
    unexplained,
)
from pyflow.training import objectives, perceptual
from pyflow.training.batch import Batch, drop_labels
from pyflow.training.objectives import OBJECTIVES, objective, refuse_source
from pyflow.training.recipes import recipe
from pyflow.training.settings import TIMES, Options
from pyflow.training.trainer import train
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pyflow.core import IMAGE, NOISE, PATHS, VELOCITY, Path, V
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.models import random_network
from pyflow.spec import MLP, Spec, UNet

SPEC = Spec(MLP(shape=(SIZE,)))
OPTIONS = Options()


# ---- floors and gradients at the exact solution
def untold(prediction: str, path: Path, t: Tensor) -> Tensor:
    """Var[what is predicted | x_t], an element."""
    if prediction == VELOCITY:
        return unexplained(path, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    variance = (alpha * DEVIATION) ** 2 + sigma**2
    return DEVIATION**2 * {NOISE: alpha**2, IMAGE: sigma**2, V: 1.0}[prediction] / variance


FROM_DATA = [
    ("cfm", VELOCITY, "linear"),
    ("ddpm", NOISE, "vp-cosine"),
    ("ddpm", NOISE, "vp-linear"),
    ("ddpm", V, "vp-cosine"),
]
FROM_PAIRS = {"reflow": VELOCITY, "grid": VELOCITY, "lines": IMAGE, "naive": IMAGE}


def solved(loss, name: str, prediction: str, path: str, seed: int) -> None:
    spec = Spec(SPEC.network, path, prediction)
    says = LAW.says(prediction)

    def floor(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return untold(prediction, PATHS[path], t)

    assert_solved(lambda net, batch: loss(net, spec, batch, OPTIONS), Instant(PATHS[path], says), draw, floor, seed)


@pytest.mark.parametrize(("name", "prediction", "path"), FROM_DATA)
def test_the_exact_answer_stands_on_its_floor(name, prediction, path, seed):
    solved(OBJECTIVES[name].loss, name, prediction, path, seed)


@pytest.mark.parametrize(("name", "prediction", "path"), FROM_DATA)
@pytest.mark.parametrize(
    "wrong", [lambda path, p, image, noise, t: image + noise, lambda path, p, image, noise, t: image]
)
def test_a_wrong_target_is_noticed(name, prediction, path, wrong, seed, monkeypatch):
    """The sign of the noise turned, or the image whatever was asked for."""
    monkeypatch.setattr(objectives, "target", wrong)
    with pytest.raises(AssertionError, match="expected 0"):
        solved(OBJECTIVES[name].loss, name, prediction, path, seed)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(("name", "prediction"), FROM_PAIRS.items())
def test_pairs_of_a_flow_are_learnt_without_any_loss(name, prediction, times, seed):
    """Noise and picture follow from any point between them, so that the floor is zero, sample by sample."""
    net, options = Straight(prediction == IMAGE), Options(times=times, huber=0.03)
    losses = OBJECTIVES[name].loss(net, Spec(SPEC.network, prediction=prediction), draw_pairs(256), options)
    assert losses.each.max() < 1e-6, f"seed {seed}"
    (slope,) = torch.autograd.grad(losses.each.sum(), net.bend)
    assert slope.abs().max() < 1e-6
    with torch.no_grad():
        net.bend[1] = 0.1
    assert (
        OBJECTIVES[name].loss(net, Spec(SPEC.network, prediction=prediction), draw_pairs(256), options).each.mean()
        > 1e-4
    )


# ---- pseudo-Huber, LPIPS
@pytest.mark.parametrize("name", ["reflow", "grid"])
def test_pseudo_huber_is_linear_far_out_and_a_parabola_near_zero(name, seed):
    batch = draw(64)
    for wrong in (0.5, 0.005):
        net = lambda x, s, t, label: batch.image - batch.noise + wrong  # noqa: E731, B023
        bent = OBJECTIVES[name].loss(net, SPEC, batch, Options(huber=0.03)).each
        assert bent.mean().item() == pytest.approx(math.sqrt(wrong**2 + 0.03**2) - 0.03, rel=1e-3)
        assert OBJECTIVES[name].loss(net, SPEC, batch, OPTIONS).each.mean().item() == pytest.approx(wrong**2, rel=1e-3)


PICTURES = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(8, 4), heads=2, classes=3)


class FakeLPIPS(nn.Module):
    """Stands for the package, which is not installed here: the largest distance of a picture, of colours only."""

    def __init__(self, net: str, pretrained: bool, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, pretrained, pnet_rand) == ("vgg", False, True), "the package would load pickles"
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        assert images.shape[1:] == others.shape[1:] == (3, 8, 8)
        return self.scale * (images - others).abs().amax((1, 2, 3), keepdim=True)


@pytest.fixture
def fake_lpips(monkeypatch, tmp_path):
    fake = ModuleType("lpips")
    fake.LPIPS = FakeLPIPS
    monkeypatch.setitem(sys.modules, "lpips", fake)
    monkeypatch.setattr(perceptual, "_loaded", {})
    (tmp_path / "lpips").write_bytes(save_tensors({"scale": torch.ones(())}))
    monkeypatch.setenv("PYFLOW_LPIPS", str(tmp_path / "lpips"))


@pytest.mark.parametrize("name", ["reflow", "grid"])
def test_lpips_sees_where_the_line_ends(name, seed, fake_lpips):
    """A velocity off by d misses the picture by (1-t) d."""
    batch = pictures(16)
    net = lambda x, s, t, label: batch.image - batch.noise + 0.2  # noqa: E731
    plain = OBJECTIVES[name].loss(net, Spec(PICTURES), batch, OPTIONS)
    losses = OBJECTIVES[name].loss(net, Spec(PICTURES), batch, Options(lpips=3.0))
    torch.testing.assert_close(losses.each - plain.each, 3 * 0.2 * (1 - losses.t), rtol=1e-4, atol=1e-5)


def test_lpips_in_a_compiled_loss(seed, fake_lpips):
    perceptual.load(torch.device("cpu"))
    made = torch.compile(perceptual.lpips_distance, fullgraph=True, backend="eager")
    images, others = torch.randn(2, 4, 3, 8, 8)
    assert torch.equal(made(images, others), perceptual.lpips_distance(images, others))


@pytest.mark.parametrize(
    "content", [None, b"no tensors", save_tensors({"other": torch.ones(())})], ids=["none", "torn", "others"]
)
def test_lpips_without_its_weights_says_how_to_make_them(fake_lpips, tmp_path, content):
    (tmp_path / "lpips").unlink()
    if content is not None:
        (tmp_path / "lpips").write_bytes(content)
    with pytest.raises(BackendUnavailable, match=r"PYFLOW_LPIPS to name a safetensors file .*loads no pickle.*or set"):
        perceptual.load(torch.device("cpu"))


def test_lpips_without_its_package_is_refused_before_anything_is_written(fake_lpips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    setting = recipe("reflow", "digits", compile=True, lpips=1.0)
    with pytest.raises(BackendUnavailable, match=r"needs the packages lpips and torchvision .*or set lpips to 0"):
        train(setting, Spec(setting.network), pictures, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["lpips"]


# ---- what holds for all
def pictures(count: int, dtype: torch.dtype = torch.float32) -> Batch:
    noise, image = torch.randn(2, count, *PICTURES.shape, dtype=dtype)
    return Batch(noise, torch.randint(4, (count,)), image, torch.rand(count, 4, dtype=dtype))


def fitting(name: str) -> Spec:
    asked = OBJECTIVES[name]
    return Spec(replace(PICTURES, times=1 + asked.two_times), asked.paths[0], asked.predicts[0], null_label=True)


def options_of(name: str, **wanted: object) -> Options:
    """Those that it reads."""
    return Options(**{option: value for option, value in wanted.items() if option in OBJECTIVES[name].reads})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_average_to_the_whole(name, seed):
    """Loss and gradient, so that processes and accumulation change nothing; in float64, where sums agree."""
    options = options_of(name, times="logit-normal", huber=0.03, guidance=2.0)
    spec, batch = fitting(name), pictures(16, torch.float64)
    net = random_network(spec.network, seed).double()
    fits = objective(name, spec, options).loss

    def parts(count: int) -> tuple[Tensor, list[Tensor]]:
        net.zero_grad()
        losses = [fits(net, spec, batch.part(i, count), options).each.mean() / count for i in range(count)]
        sum(losses).backward()
        return sum(losses), [weight.grad.clone() for weight in net.parameters()]

    (whole, slopes), (sum_of_parts, other_slopes) = parts(1), parts(4)
    torch.testing.assert_close(whole, sum_of_parts, rtol=1e-5, atol=1e-6, msg=lambda m: f"seed {seed}: {m}")
    torch.testing.assert_close(slopes, other_slopes, rtol=1e-4, atol=1e-5, msg=lambda m: f"seed {seed}: {m}")
    assert all(slope.abs().max() > 0 for slope in slopes), "a weight that learns nothing"


@pytest.mark.parametrize("spoiled", ["noise", "image"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_nan_in_a_sample_is_a_nan_in_its_loss_alone(name, spoiled, seed):
    spec, batch = fitting(name), pictures(8)
    for sample in (0, 7):  # one on the diagonal or the jump, one beyond
        tensor = getattr(batch, spoiled).clone()
        tensor[sample, 0, 3, 3] = math.nan
        losses = OBJECTIVES[name].loss(
            random_network(spec.network, seed), spec, batch._replace(**{spoiled: tensor}), OPTIONS
        )
        assert losses.each.isnan().nonzero().flatten().tolist() == [sample], f"seed {seed}"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_changes_little(name, seed):
    spec, batch = fitting(name), pictures(32)
    net, options = random_network(spec.network, seed), Options(adaptive=0.0, gap=0.2)

    def slope() -> Tensor:
        net.zero_grad()
        losses = OBJECTIVES[name].loss(net, spec, batch, options)
        assert losses.each.dtype == torch.float32
        losses.each.mean().backward()
        return torch.cat([weight.grad.flatten() for weight in net.parameters()])

    exact = slope()
    with torch.autocast("cpu", torch.bfloat16):
        rough = slope()
    assert (rough - exact).norm() < 0.1 * exact.norm(), f"seed {seed}: {(rough - exact).norm() / exact.norm()}"


def test_labels_are_dropped_sample_by_sample(seed):
    """Each sample by its own coin: the share is right, and hardly any batch drops all or none."""
    dropped_evenly(drop_labels, seed)


def dropped_evenly(drop, seed: int) -> None:
    spec = Spec(MLP(classes=4), null_label=True)
    dropped = torch.stack([drop(labelled(), spec, 0.3).label == 4 for _ in range(500)])
    assert not dropped.all(dim=1).any(), f"seed {seed}: a batch without any label"
    assert dropped.any(dim=1).all()
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.02), f"seed {seed}"
    assert dropped.float().mean(dim=0).max() < 0.5
    batch = labelled()
    kept = drop(batch, spec, 0.3).label
    assert ((kept == batch.label) | (kept == 4)).all()
    assert torch.equal(drop(batch, spec, 0.0).label, batch.label)
    assert batch.label.max() == 3, "the caller's labels were written to"


def labelled() -> Batch:
    return draw(64)._replace(label=torch.arange(64) % 4)


def test_dropping_the_labels_of_whole_batches_is_noticed(seed):
    spoiled = inspect.getsource(drop_labels).replace("coins[:, -1]", "coins[:1, -1]")
    module: dict = {"Batch": Batch, "Spec": Spec, "torch": torch}
    exec(spoiled, module)
    with pytest.raises(AssertionError, match="a batch without any label"):
        dropped_evenly(module["drop_labels"], seed)


# ---- what is refused
TOLD = replace(PICTURES, times=2, guided=True)
REFUSED = {
    "unknown": ("sgd", Spec(PICTURES), {}, "objective is 'sgd'; expected one of cfm, ddpm"),
    "prediction": ("ddpm", Spec(PICTURES), {}, "prediction is 'velocity'; ddpm expected 'noise' or 'v'"),
    "one time": ("lsd", Spec(PICTURES), {}, "times is 1; lsd expected a network with times=2"),
    "velocity": ("cfm", Spec(PICTURES, "vp-linear"), {}, "path is 'vp-linear'; cfm expected 'linear'"),
    "noise": (
        "ddpm",
        Spec(PICTURES, prediction=NOISE),
        {},
        "path is 'linear'; ddpm expected 'vp-cosine' or 'vp-linear'",
    ),
    "points": ("reflow", Spec(MLP()), {"lpips": 1.0}, "lpips is 1; expected 0: points are no pictures"),
    "path": ("consistency", Spec(PICTURES, "vp-cosine"), {}, "path is 'vp-cosine'; consistency expected 'linear'"),
    "guided": ("lsd", Spec(TOLD), {}, "guided is True; lsd expected"),
    "guidance elsewhere": ("cfm", Spec(PICTURES), {"guidance": 2.0}, "guidance is 2; expected 1: only MeanFlow"),
    "guidance without classes": (
        "meanflow",
        Spec(replace(TOLD, guided=False, classes=0)),
        {"guidance": 2.0},
        "guidance is 2; expected 1",
    ),
}


@pytest.mark.parametrize(("name", "spec", "changes", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_learnt_is_refused(name, spec, changes, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        objective(name, spec, Options(**changes))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_options_are_read_or_refused(name):
    """Each option beside the default: one that an objective reads is taken."""
    others = {"times": "u-shaped", "jump": 0.1, "huber": 3.0, "lpips": 1.0, "grid": 9, "diagonal": 0.5}
    others |= {"guidance": 2.0, "adaptive": 0.5, "gap": 0.1, "learned_weight": True, "masked": 0.1, "region": 0.0}
    assert others.keys() | {"pooled"} == {field.name for field in fields(Options)}
    for option, value in others.items():
        if option in OBJECTIVES[name].reads | {"learned_weight"}:
            assert objective(name, fitting(name), Options(**{option: value})) is OBJECTIVES[name]
            continue
        with pytest.raises(InvalidInput, match=rf"{option} is .*; expected .*: .*"):
            objective(name, fitting(name), Options(**{option: value}))


def test_every_option_has_a_reader():
    read = frozenset.union(*(each.reads | each.holes for each in OBJECTIVES.values()))
    assert read | {"learned_weight"} == {field.name for field in fields(Options)}


def test_pairs_and_data_are_not_mixed_up():
    refuse_source("cfm", pairs=False)
    refuse_source("lines", pairs=True)
    with pytest.raises(InvalidInput, match="objective is 'naive'; expected one that learns from data: cfm, ddpm"):
        refuse_source("naive", pairs=False)
    with pytest.raises(InvalidInput, match="objective is 'lsd'; expected one that learns from a teacher's pairs: refl"):
        refuse_source("lsd", pairs=True)
