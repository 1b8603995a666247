"""Training: what is learnt, what is published, what is refused."""

import json
import re
from dataclasses import replace

import pytest
import torch
from pyflow.training.batch import COINS, Batch, paired, unpaired
from pyflow.training.objectives import OBJECTIVES
from pyflow.training.recipes import recipe
from pyflow.training.settings import Options
from tiny import UNET, network
from tiny_runs import MAP, POINTS, RECIPE, SETTINGS, Interrupted, data, interrupted, run, spec_of, whole

from pyflow import checkpoint
from pyflow.errors import InvalidInput, NotFinite
from pyflow.models import build


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
    assert whole(tmp_path / "a")["./enter.weight"] != whole(tmp_path / "c")["./enter.weight"]


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
        OBJECTIVES["cfm"].loss(net, spec_of(setting), draw(setting.batch), setting.options).each.mean().backward()
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
        cfm = OBJECTIVES["cfm"].loss
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


@pytest.mark.parametrize("name", ["points", "unet", "learned weight"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(tmp_path, rng, name):
    """Without dropout, whose masks belong to the place in the part. Adam's first moment is a tenth of the gradient."""
    setting = replace(SETTINGS[name], batch=16, seed=int(rng.integers(2**31)), half_lives=(0.1,), steps=1, clip=1e9)
    if name == "unet":
        setting = replace(setting, network=replace(setting.network, dropout=0.0))
    start = network(setting.network, int(rng.integers(2**31)))
    for parts in (1, 2, 4):
        run(tmp_path / str(parts), replace(setting, accumulate=parts), start=start)
    moments = [
        torch.cat([state[key].flatten() for key in sorted(state) if key.endswith("exp_avg")])
        for state in (checkpoint.load_state(tmp_path / str(parts)) for parts in (1, 2, 4))
    ]
    for other in moments[1:]:
        assert (other - moments[0]).norm() < 1e-5 * moments[0].norm(), setting.seed


def test_a_learned_weight_is_trained_and_not_published(tmp_path):
    setting = SETTINGS["learned weight"]
    run(tmp_path / "run", setting)
    state = checkpoint.load_state(tmp_path / "run")
    assert state["weight.leave.weight"].abs().max() > 0  # where it starts
    weights = checkpoint.load(tmp_path / "run")[0].state_dict()
    assert weights.keys() == build(setting.network).state_dict().keys()


@pytest.mark.parametrize("name", ["points", "unet", "learned weight"])
def test_bfloat16_trains_nearly_what_float32_does(tmp_path, name):
    """Products are bfloat16, weights, losses and derivatives along a direction float32."""
    setting = replace(SETTINGS[name], batch=16, steps=8, half_lives=(0.1,), learning_rate=1e-3)
    losses = {}
    for precision in ("fp32", "bf16"):
        run(tmp_path / precision, replace(setting, precision=precision), save_every=1000)
        losses[precision] = loss_logged(tmp_path / precision)
        assert {value.dtype for value in checkpoint.load(tmp_path / precision)[0].state_dict().values()} == {
            torch.float32
        }
    assert losses["fp32"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


def loss_logged(folder) -> float:
    lines = (folder.with_name(f"{folder.name}.log") / "log.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["loss"]


LOGGED = {
    "plain": RECIPE,
    "adaptive": replace(MAP, objective="meanflow", options=Options()),
    "learned weight": MAP,
    "huber": replace(SETTINGS["reflow"], options=Options(huber=0.03)),
    "gap": replace(RECIPE, objective="consistency"),
}


@pytest.mark.parametrize("name", LOGGED)
def test_the_loss_that_is_logged_is_the_mean_square(tmp_path, name):
    """At the first step, of a network that says nothing yet: what it misses is the target itself."""
    setting = replace(LOGGED[name], accumulate=1, batch=8, steps=2)
    seen = []

    def draw(count: int, drawn=data(setting)) -> Batch:  # noqa: B008
        seen.append(drawn(count))
        return seen[-1]

    run(tmp_path / "run", setting, draw, start=network_of(setting))
    lines = (tmp_path / "run.log" / "log.jsonl").read_text().splitlines()
    first, last = (json.loads(line) for line in lines)
    missed = (seen[0].image - seen[0].noise).square().mean(1)
    if name == "learned weight":
        missed[6:] = 0  # off the diagonal it is at peace with itself
    if name == "gap":
        missed *= (seen[0].coins[:, 0] + 0.02).clamp(max=1).sub(seen[0].coins[:, 0]).square()
    assert first["loss"] == pytest.approx(missed.mean().item(), rel=1e-3)
    assert ("weighted" in last) == (name != "plain")


def network_of(setting):
    """One that says 0 whatever it is asked."""
    net = build(setting.network)
    with torch.no_grad():
        net.leave.weight.zero_()
        net.leave.bias.zero_()
    return net


@pytest.mark.parametrize("objective", ["meanflow", "improved-meanflow", "lsd", "esd", "psd-uniform", "consistency"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_flow_map_trains_a_unet_with_attention(tmp_path, objective, precision):
    network = replace(UNET, times=1 if objective == "consistency" else 2)
    setting = replace(RECIPE, objective=objective, network=network, steps=2, batch=8, precision=precision)
    setting = replace(setting, learning_rate=1e-4, options=Options() if network.times == 1 else Options(diagonal=0.5))
    run(tmp_path / "run", setting)
    assert checkpoint.load_state(tmp_path / "run")["net.leave.weight"].abs().max() > 0


DDPM = replace(RECIPE, objective="ddpm", path="vp-cosine", prediction="noise")
REFUSED = {
    "solver": (replace(DDPM, solver="ab2"), {}, "prediction is 'noise'; ab2 expected velocity"),
    "path": (replace(DDPM, path="linear"), {}, "path is 'linear'; ddpm expected 'vp-cosine' or 'vp-linear'"),
    "watch": (RECIPE, {"watch": -5}, "watch is -5; expected 0 .never. or more steps"),
    "diagonal": (replace(MAP, accumulate=2), {}, "batch is 4; expected a multiple of 8, so that diagonal=0.75 of each"),
    "jump": (
        replace(SETTINGS["reflow"], batch=6, accumulate=2),
        {},
        "batch is 6; expected a multiple of 4, so that jump=0.5",
    ),
    "one sample": (
        replace(MAP, batch=1),
        {},
        "batch is 1; expected a multiple of 4, so that diagonal=0.75 of each",
    ),
}


@pytest.mark.parametrize(("setting", "arguments", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_run_is_refused_before_training(tmp_path, setting, arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        run(tmp_path / "run", setting, interrupted(data(setting), 0), **arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_parts_of_an_even_batch_have_the_share_of_the_whole(count, rng):
    share = float(rng.integers(1, 100)) / 100
    whole = Batch(*torch.rand(4, 100 * count, 1))
    shares = [whole.part(index, count).share(share) for index in range(count)]
    assert shares == [round(share * 100)] * count
    assert whole.share(share) == sum(shares), share


def test_the_wrong_device_processes_or_folder_is_refused_before_training(tmp_path):
    for device in ("tpu", "cpu:x", "mps"):
        with pytest.raises(InvalidInput, match=f"device is '{device}'; expected cpu or cuda"):
            run(tmp_path / "run", device=device)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="torch finds no CUDA device here; expected cpu"):
            run(tmp_path / "run", device="cuda")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diary.txt").write_text("dear")
    with pytest.raises(InvalidInput, match="is no checkpoint; expected one of the same run, or a name that is free"):
        run(tmp_path / "run", draw=interrupted(data(RECIPE), 0))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_within_float_error(tmp_path):
    setting = replace(MAP, objective="psd-midpoint")
    run(tmp_path / "eager", setting, save_every=1000)
    run(tmp_path / "compiled", replace(setting, compile=True), save_every=1000)
    eager, compiled = (checkpoint.load_state(tmp_path / how) for how in ("eager", "compiled"))
    assert torch.equal(eager["rng"], compiled["rng"])  # the trial took no chance from the run
    for key in (key for key in eager if key.startswith("net.")):
        torch.testing.assert_close(compiled[key], eager[key], rtol=1e-3, atol=1e-4, msg=key)


def test_what_does_not_compile_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def uncompilable(net, spec, batch, options):
        print("a side effect that no graph has", batch.label.tolist()[0])

    monkeypatch.setitem(OBJECTIVES, "cfm", OBJECTIVES["cfm"]._replace(loss=uncompilable))
    with pytest.raises(InvalidInput, match=r"compile is True; cfm does not compile here .*: expected False"):
        run(tmp_path / "run", replace(RECIPE, compile=True))
    assert not any(tmp_path.iterdir())
