"""The log has each step once whatever happened, and nothing that is watched changes what is trained."""

import json
import sys
import time
import types
from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pyflow.training.classifier import Classifier
from pyflow.training.logs import Log, folder_of, refuse_missing
from pyflow.training.objectives import OBJECTIVES
from pyflow.training.watch import Watch
from tiny import UNET, network
from tiny_runs import DROPOUT, MAP, RECIPE, Interrupted, data, interrupted, run, spec_of, whole
from torch import nn

from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.spec import Own

CPU = torch.device("cpu")
LONG = replace(RECIPE, steps=45)
WATCHED = {
    "points": RECIPE,
    "flow map": MAP,
    "unet": DROPOUT,
    "ancestral": replace(DROPOUT, objective="ddpm", path="vp-cosine", prediction="noise", solver="ddpm"),
}


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder_of(folder) / "log.jsonl").read_text().splitlines()]


def watch_of(setting) -> Watch:
    spec = spec_of(setting)
    loss_of = partial(OBJECTIVES[setting.objective].loss, spec=spec, options=setting.options)
    return Watch(spec, data(setting), CPU, None, "dots", lambda net, batch: loss_of(net, batch=batch))


def steps(folder) -> list[int]:
    return [line["step"] for line in lines(folder)]


# ---- log.jsonl
def test_a_resumed_run_logs_each_step_once_and_the_same(tmp_path, rng):
    run(tmp_path / "whole", LONG, watch=10)
    for at in rng.integers(1, 45, size=2).tolist():
        folder = tmp_path / f"stopped at {at}"
        with pytest.raises(Interrupted):
            run(folder, LONG, interrupted(data(LONG), at), watch=10, save_every=7)
        (folder_of(folder) / "log.jsonl").open("a").write('{"step": 44, "lo')  # killed while it wrote
        run(folder, LONG, watch=10, save_every=7)
        assert steps(folder) == [1, 10, 20, 30, 40, 45]
        assert lines(folder) == lines(tmp_path / "whole"), f"stopped at {at}"
        pictures = sorted(path.name for path in folder_of(folder).glob("*.png"))
        assert pictures == [f"step-0000{step}.png" for step in ("01", 10, 20, 30, 40)]


def test_a_value_that_is_not_finite_is_null(tmp_path):
    with Log(tmp_path, 0, (), {}, spec_of(RECIPE)) as log:
        log.write(1, {"loss": float("nan"), "norm": 2.0})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": None, "norm": 2.0}


# ---- TensorBoard and W&B
def test_tensorboard_is_given_the_same_values(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interrupted):
        run(tmp_path / "run", LONG, interrupted(data(LONG), 41), logs=("tensorboard",), save_every=35, watch=10)
    run(tmp_path / "run", LONG, logs=("tensorboard",), watch=10)
    events = EventAccumulator(str(folder_of(tmp_path / "run")), size_guidance={"images": 0})
    events.Reload()
    for name in ("loss", "norm", "rate"):
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines(tmp_path / "run")]
        assert seen == expected
    shown = events.Images("samples")
    assert [image.step for image in shown] == [1, 10, 20, 30, 40]
    for image in shown:
        sent = np.asarray(Image.open(BytesIO(image.encoded_image_string)).convert("L"))
        kept = Image.open(folder_of(tmp_path / "run") / f"step-{image.step:06d}.png")
        np.testing.assert_array_equal(sent, np.asarray(kept.convert("L")))


class FakeRun:
    def __init__(self, **setting):
        self.setting, self.logged, self.ended = setting, [], None

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def wandb(monkeypatch) -> list[FakeRun]:
    runs: list[FakeRun] = []
    module = types.ModuleType("wandb")
    module.init = lambda **setting: runs.append(FakeRun(**setting)) or runs[-1]
    module.Image = lambda pixels: ("picture", pixels.dtype, pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_is_given_the_same_values_in_one_run(tmp_path, wandb):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", LONG, interrupted(data(LONG), 30), logs=("wandb",))
    run(tmp_path / "run", LONG, logs=("wandb",))
    run(tmp_path / "other", RECIPE, logs=("wandb",))
    first, second, other = wandb
    assert first.setting["id"] == second.setting["id"] != other.setting["id"]
    assert first.setting["config"]["learning_rate"] == 1e-2
    assert (first.setting["name"], first.ended, second.ended) == ("run", 1, 0)
    assert [step for step, _ in first.logged + second.logged] == steps(tmp_path / "run")


def test_wandb_is_given_the_samples(tmp_path, wandb):
    run(tmp_path / "run", DROPOUT, logs=("wandb",), watch=5)
    (made,) = wandb
    sheets = {step: values["samples"] for step, values in made.logged if "samples" in values}
    width, height = Image.open(folder_of(tmp_path / "run") / "step-000005.png").size
    assert sheets == dict.fromkeys((1, 5), ("picture", np.uint8, (height, width, 3)))


def test_logs_that_are_missing_are_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BackendUnavailable, match=r"logs names 'wandb', which is not installed .*: pip install wandb"):
        run(tmp_path / "run", logs=("wandb",))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[logs\]"'):
        refuse_missing(("tensorboard",))
    with pytest.raises(InvalidInput, match="logs names 'csv'; expected some of tensorboard, wandb"):
        run(tmp_path / "run", logs=("csv",))
    assert not any(tmp_path.iterdir())


# ---- what is watched
@pytest.mark.parametrize("setting", WATCHED.values(), ids=WATCHED.keys())
def test_watching_changes_nothing(tmp_path, setting):
    setting = replace(setting, half_lives=(0.1, 0.2))
    run(tmp_path / "unwatched", setting, watch=0)
    run(tmp_path / "watched", setting, watch=2, judge=None)
    assert whole(tmp_path / "watched") == whole(tmp_path / "unwatched")
    signs = [line for line in lines(tmp_path / "watched") if "jvp-norm" in line]
    assert [sign["step"] for sign in signs] == [1, *range(2, setting.steps + 1, 2)]
    name = "points" if len(setting.network.shape) == 1 else "pixels-4x4"
    for sign in signs:
        assert sign["jvp-norm"] > 0
        assert sign["fixed-loss"] > 0
        assert sign[f"frechet-4-steps/{name}"] > 0
        assert (sign.get("semigroup-error", 0) > 0) == (setting.network.times == 2)
    picture = np.asarray(Image.open(folder_of(tmp_path / "watched") / "step-000002.png"))
    assert picture.std() > 0


def test_a_classifier_lends_its_features_and_its_name(tmp_path):
    torch.manual_seed(0)
    judge = Classifier(UNET.shape, 3).eval()
    run(tmp_path / "run", DROPOUT, watch=5, judge=judge)
    assert "frechet-4-steps/dots-classifier" in lines(tmp_path / "run")[0]


def test_a_network_that_has_diverged_is_watched_all_the_same(tmp_path):
    start = network(DROPOUT.network, 0)
    with torch.no_grad():
        start.leave.weight.mul_(1e30)

    signs, picture = watch_of(DROPOUT).look(start)
    assert not np.isfinite(signs["frechet-4-steps/pixels-4x4"])
    assert picture is not None


def test_a_log_costs_less_than_two_hundredths_of_the_steps(tmp_path):
    """Of the smallest recipe's network, at the default settings, but for samples: these are a matter of `watch`."""
    log = Log(tmp_path, 0, (), {}, spec_of(RECIPE))
    values = {"loss": 1.234567, "norm": 0.1, "rate": 0.5}
    started = time.perf_counter()
    for step in range(1000):
        log.write(step, values)
    assert (time.perf_counter() - started) / 1000 / 20 < 0.02 * 1e-3  # a line in 20 steps, beside steps of 1 ms


class Line(nn.Module):
    """A network of one's own for any shape, through a function that may have no derivative along a direction."""

    def __init__(self, shape: tuple[int, ...], opaque: bool) -> None:
        super().__init__()
        self.scale, self.opaque = nn.Parameter(torch.ones(shape)), opaque

    def forward(self, x, s, t, label):
        return Opaque.apply(x * self.scale) if self.opaque else x * self.scale


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, slope):
        return slope


def test_the_fixed_loss_has_no_chance_of_its_own():
    watched, net = watch_of(MAP), network(MAP.network, 0)
    first = watched.look(net)[0]["fixed-loss"]
    torch.rand(3)
    assert watched.look(net)[0]["fixed-loss"] == first
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    assert watched.look(net)[0]["fixed-loss"] != first


@pytest.mark.parametrize("shape", [(2000,), (300, 8, 8), (16, 8), (3, 4, 8, 8), (2, 8, 8), (1,)], ids=str)
def test_any_shape_is_looked_at(shape):
    setting = replace(RECIPE, network=Own("Line", shape, classes=3))
    watched = watch_of(setting)
    signs, picture = watched.look(Line(shape, opaque=False))
    assert not watched.failed
    assert np.isfinite([*signs.values()]).all(), signs
    assert (picture is None) == (shape != (2000,))  # of points the first two coordinates are shown


def test_a_sign_that_fails_is_missing_and_said_once(capsys):
    setting = replace(RECIPE, network=Own("Line", (2,), classes=3))
    watched = watch_of(setting)
    for _ in range(2):
        signs, picture = watched.look(Line((2,), opaque=True))
        assert np.isnan(signs["jvp-norm"])
        assert signs["frechet-4-steps/points"] > 0
        assert picture is not None
    assert capsys.readouterr().out.count("jvp-norm is missing in the log: ") == 1
