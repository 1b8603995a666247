"""Training: a run that was interrupted anywhere ends bit for bit where an uninterrupted one ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pyflow.training.batch import COINS, Batch, paired, unpaired
from pyflow.training.objectives import OBJECTIVES
from pyflow.training.recipes import Options, Recipe, recipe
from pyflow.training.trainer import provenance, train
from tiny import UNET, network

from pyflow import checkpoint
from pyflow.errors import InvalidArtefact, InvalidInput, NotFinite
from pyflow.models import build
from pyflow.spec import MLP, Spec

POINTS = MLP(shape=(2,), width=8, depth=2, classes=3)
RECIPE = Recipe("cfm", "cfm", "dots", POINTS, steps=12, batch=4, learning_rate=1e-2)


def spec_of(setting: Recipe) -> Spec:
    return Spec(setting.network, null_label=True, provenance=provenance(setting))


def data(setting: Recipe):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, *setting.network.shape, generator=generator)
    return unpaired(images, torch.arange(32) % 3)


class Interrupted(Exception):
    pass


def interrupted(draw, at: int):
    """Raises at draw number `at`, counted from 0 in this process."""
    count = 0

    def drawn(size: int) -> Batch:
        nonlocal count
        count += 1
        if count > at:
            raise Interrupted
        return draw(size)

    return drawn


def whole(folder) -> dict[str, bytes]:
    """Weights, network, optimizer, random state and step: everything that a run leaves."""
    tensors = {**checkpoint.load_arrays(folder, checkpoint.SPEC, checkpoint.WEIGHTS), **checkpoint.load_state(folder)}
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}


def run(folder, setting=RECIPE, draw=None, **arguments) -> bool:
    arguments = {"save_every": 3, **arguments}
    return train(setting, spec_of(setting), draw or data(setting), folder, **arguments)


SETTINGS = {
    "points": RECIPE,
    "unet": replace(RECIPE, network=replace(UNET, dropout=0.2), steps=9, batch=2),
    "reflow": replace(RECIPE, name="reflow", objective="reflow", label_dropout=0.0),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, rng, setting):
    torch.manual_seed(int(rng.integers(2**31)))  # whatever the caller's generator says
    assert run(tmp_path / "whole", setting)
    expected = whole(tmp_path / "whole")
    for at in sorted({0, 1, 3, *rng.integers(setting.steps, size=3).tolist()}):
        folder = tmp_path / f"stopped at {at}"
        with pytest.raises(Interrupted):
            run(folder, setting, interrupted(data(setting), at))
        with pytest.raises(Interrupted):  # and once more, two steps on
            run(folder, setting, interrupted(data(setting), 2))
        torch.manual_seed(int(rng.integers(2**31)))
        assert run(folder, setting, save_every=int(rng.integers(1, 9)))
        assert whole(folder) == expected, f"stopped at step {at}"
        assert (folder / checkpoint.WEIGHTS).read_bytes() == (tmp_path / "whole" / checkpoint.WEIGHTS).read_bytes()


def test_the_last_save_before_an_interruption_stands(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", draw=interrupted(data(RECIPE), 2))
    assert not (tmp_path / "run").exists()
    for at, saved in ((4, 3), (4, 6), (0, 6)):
        with pytest.raises(Interrupted):
            run(tmp_path / "run", draw=interrupted(data(RECIPE), at))
        assert int(checkpoint.load_state(tmp_path / "run")["step"]) == saved


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_trainer as t
draw, count = t.data(t.RECIPE), 0
def killed(size):
    global count
    count += 1
    if count > 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(size)
t.run(Path(sys.argv[2]), draw=killed)
"""


def test_a_killed_run_goes_on_exactly(tmp_path):
    run(tmp_path / "whole")
    done = subprocess.run([sys.executable, "-c", KILLED, os.path.dirname(__file__), str(tmp_path / "killed")])
    assert done.returncode == -signal.SIGKILL
    assert int(checkpoint.load_state(tmp_path / "killed")["step"]) == 6
    assert run(tmp_path / "killed")
    assert whole(tmp_path / "killed") == whole(tmp_path / "whole")


def test_a_finished_run_is_left_alone(tmp_path):
    assert run(tmp_path / "run") is True
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()}
    assert run(tmp_path / "run", draw=interrupted(data(RECIPE), 0)) is False
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-2},
        {"steps": 13},
        {"seed": 1},
        {"batch": 8},
        {"label_dropout": 0.2},
        {"data": "other"},
        {"network": replace(POINTS, width=16)},
        {"half_lives": (0.1,)},
    ],
    ids=lambda change: ",".join(change),
)
def test_another_recipe_in_the_same_folder_is_refused(tmp_path, change):
    run(tmp_path / "run")
    before = whole(tmp_path / "run")
    with pytest.raises(InvalidInput, match="holds a checkpoint of another recipe"):
        run(tmp_path / "run", replace(RECIPE, **change))
    assert whole(tmp_path / "run") == before


def test_a_checkpoint_that_cannot_be_continued_is_refused(tmp_path):
    run(tmp_path / "run")
    model, spec = checkpoint.load(tmp_path / "run")
    checkpoint.save(tmp_path / "weights only", model, spec)
    with pytest.raises(InvalidArtefact, match=r"holds no state\.safetensors"):
        run(tmp_path / "weights only")
    state = checkpoint.load_state(tmp_path / "run")
    for broken in ({k: v for k, v in state.items() if k != "rng"}, {**state, "net.enter.weight": torch.zeros(1)}):
        checkpoint.save(tmp_path / "broken", model, spec, broken)
        with pytest.raises(InvalidArtefact, match="its training state does not fit this run"):
            run(tmp_path / "broken")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, bad):
    draw, count = data(RECIPE), 0

    def poisoned(size: int) -> Batch:
        nonlocal count
        count += 1
        batch = draw(size)
        return batch._replace(image=batch.image * bad) if count == 8 else batch

    with pytest.raises(NotFinite, match=r"step 7: loss .*lower learning_rate"):
        run(tmp_path / "run", draw=poisoned)
    assert int(checkpoint.load_state(tmp_path / "run")["step"]) == 6
    with pytest.raises(Interrupted):
        run(tmp_path / "expected", draw=interrupted(draw, 7))
    assert whole(tmp_path / "run") == whole(tmp_path / "expected")


def test_a_seed_decides_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(5)  # the caller's generator is somewhere else each time
        run(tmp_path / name, replace(RECIPE, seed=seed))
    assert whole(tmp_path / "a") == whole(tmp_path / "b")
    assert whole(tmp_path / "a")["enter.weight"] != whole(tmp_path / "c")["enter.weight"]


def test_the_published_weights_are_the_average_of_the_trained_ones(tmp_path):
    """The average by its formula, from the weights after every step; and the optimizer by torch's own, run beside."""
    setting = replace(RECIPE, steps=9, half_lives=(0.3,), label_dropout=0.0, clip=1e9)
    run(tmp_path / "run", setting, save_every=1000)

    torch.manual_seed(setting.seed)
    net = build(setting.network)
    average = {name: value.clone().double() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01)
    torch.manual_seed(setting.seed)
    build(setting.network)  # the trainer builds one before its first draw
    draw = data(setting)
    for step in range(setting.steps):
        (group,) = optimizer.param_groups
        group["lr"] = setting.learning_rate * min(
            step + 1, (9 - step) / 9
        )  # 5% of 9 steps is less than one: no warm-up
        optimizer.zero_grad()
        OBJECTIVES["cfm"](net, spec_of(setting), draw(setting.batch), setting.options).each.mean().backward()
        optimizer.step()
        decay = min(0.5 ** (1 / (0.3 * 9)), (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    published = checkpoint.load(tmp_path / "run")[0].state_dict()
    for name, value in average.items():
        torch.testing.assert_close(published[name].double(), value, rtol=1e-4, atol=1e-5)
    state = checkpoint.load_state(tmp_path / "run")
    torch.testing.assert_close(state["net.leave.weight"], net.leave.weight.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(state["net.leave.weight"], published["leave.weight"])


def test_a_student_starts_from_its_teacher_and_leaves_it_alone(tmp_path):
    teacher = network(POINTS, 5)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    setting = replace(RECIPE, steps=1, learning_rate=1e-9)
    noise, labels, images = torch.randn(8, 2), torch.arange(8) % 3, torch.randn(8, 2)
    run(tmp_path / "run", setting, paired((noise, labels, images)), start=teacher)
    student = checkpoint.load(tmp_path / "run")[0].state_dict()
    for name, value in before.items():
        assert torch.equal(teacher.state_dict()[name], value)
        torch.testing.assert_close(student[name], value, rtol=0, atol=1e-7)


def test_batches_keep_noise_label_and_picture_together():
    noise, labels = torch.randn(50, 2), torch.arange(50)
    images = noise + labels[:, None]
    batch = paired((noise, labels, images))(200)
    torch.testing.assert_close(batch.image, batch.noise + batch.label[:, None])
    assert len(batch.label.unique()) > 30
    batch = unpaired(images, labels)(200)
    assert torch.equal(batch.image, images[batch.label])
    assert abs(batch.noise.std().item() - 1) < 0.3
    assert not any(torch.equal(row, other) for row in batch.noise[:20] for other in noise)


def test_training_learns(tmp_path):
    """The loss on fixed draws falls far below that of a network that says nothing."""
    setting = replace(RECIPE, steps=300, batch=64, learning_rate=1e-2, network=replace(POINTS, width=32))
    image = torch.tensor([[2.0, -1.0]]).expand(64, 2)
    run(tmp_path / "run", setting, unpaired(image, torch.zeros(64, dtype=torch.int64)), save_every=1000)
    net, spec = checkpoint.load(tmp_path / "run")
    torch.manual_seed(0)
    image = torch.tensor([[2.0, -1.0]]).expand(512, 2)
    batch = Batch(torch.randn(512, 2), torch.zeros(512, dtype=torch.int64), image, torch.rand(512, COINS))
    with torch.no_grad():
        cfm = OBJECTIVES["cfm"]
        trained, silent = (cfm(n, spec, batch, Options()).each.mean() for n in (net, network_of_zeros()))
        assert trained < 0.35 * silent


def network_of_zeros():
    return lambda x, s, t, label: torch.zeros_like(x)


def test_recipes_name_what_they_do_not_know(tmp_path):
    with pytest.raises(InvalidInput, match="recipe is 'gan'; expected one of cfm"):
        recipe("gan", "digits")
    with pytest.raises(InvalidInput, match="has no field wings; it has name, objective"):
        recipe("cfm", "digits", wings=2)
    assert recipe("cfm", "digits", steps=7).steps == 7
    with pytest.raises(InvalidInput, match="objective is 'gan'; expected one of cfm"):
        run(tmp_path / "run", replace(RECIPE, objective="gan"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -1),
        ("batch", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("label_dropout", 1.5),
        ("half_lives", (-1.0,)),
        ("warmup", 2.0),
        ("clip", 0.0),
        ("seed", -1),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(name, value):
    with pytest.raises(InvalidInput, match=re.escape(f"{name} is {value!r}; expected")):
        replace(RECIPE, **{name: value})


def test_a_copied_run_goes_on_like_the_original(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "a", draw=interrupted(data(RECIPE), 5))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert whole(tmp_path / "a") == whole(tmp_path / "b")
