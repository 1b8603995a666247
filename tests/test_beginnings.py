"""From recipe to checkpoint: what training starts from, what comes out, what is refused before anything is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from pyflow.training import pairs as pairs_files
from pyflow.training.beginnings import begin, spec_of
from pyflow.training.pairs import PairsSpec
from pyflow.training.recipes import STUDENTS, recipe
from tiny import UNET, network, save

from pyflow import checkpoint, commands, load
from pyflow.cli import main
from pyflow.errors import InvalidInput
from pyflow.spec import MLP, Spec, UNet

POINTS = MLP(shape=(2,), width=8, depth=2, classes=3)
QUICK = {"steps": 2, "batch": 4, "watch": 0}
SMALL = ["--network.channels", "8", "--network.multipliers", "1,2", "--network.attention", "8", "--watch", "0"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def pairs_of(folder, shape=(2,), classes=3, count=8):
    spec = PairsSpec("abc", shape, classes, count, seed=5, solver="euler", steps=2, guidance=1.0, shard=4)
    pairs_files.generate(lambda first, labels: np.ones((len(labels), *shape), np.float32), spec, folder)
    return folder


def test_the_objective_is_one_for_what_it_learns_from(tmp_path):
    with pytest.raises(InvalidInput, match="objective is 'reflow'; expected one that learns from data: cfm"):
        commands.train_teacher("cfm", "checkerboard", tmp_path / "t", objective="reflow", **QUICK)
    teacher = save(tmp_path / "teacher", Spec(POINTS, provenance={"data": "dots"}))
    with pytest.raises(InvalidInput, match="objective is 'cfm'; expected one that learns from a teacher's pairs: refl"):
        commands.distil("reflow", teacher, pairs_of(tmp_path / "p"), tmp_path / "s", objective="cfm", **QUICK)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "p"}


@pytest.mark.parametrize("one_time", [POINTS, UNET], ids=["points", "pictures"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_network_that_takes_more_begins_with_what_the_other_says(one_time, guided, tmp_path, rng):
    seed = int(rng.integers(2**31))
    save(tmp_path / "one", Spec(one_time), seed)
    expected = network(one_time, seed)
    made = begin(tmp_path / "one", replace(one_time, times=2, guided=guided)).eval()
    x, label = torch.randn(6, *one_time.shape), torch.arange(6) % 4
    s, t = torch.rand(6), torch.rand(6)
    told = (1 + 3 * torch.rand(6),) if guided else ()
    with torch.no_grad():
        torch.testing.assert_close(made(x, s, t, label, *told), expected(x, s, s, label), msg=f"seed {seed}")
    made.train()(x, s, t, label, *told).square().sum().backward()
    still = [name for name, weight in made.named_parameters() if not weight.grad.any()]
    assert all(name.startswith("condition.guide.0") for name in still), f"never learns: {still}"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(POINTS, width=16), r"condition\.label\.weight is \(4, 8\) and not \(4, 16\), .* and \d more"),
        (replace(POINTS, depth=3), r"hidden\.1\.bias is absent and not \(8,\), hidden\.1\.weight is absent"),
        (replace(POINTS, classes=4), r"condition\.label\.weight is \(4, 8\) and not \(5, 8\)\);"),
        (UNET, r"condition\.label\.weight is \(4, 8\) and not \(4, 32\), .* and 114 more\);"),
    ],
)
def test_weights_that_do_not_fit_are_named(other, said, tmp_path):
    save(tmp_path / "points", Spec(POINTS))
    with pytest.raises(InvalidInput, match=rf"the weights of .*points do not fit the recipe's network \(.*{said}"):
        begin(tmp_path / "points", other)


def test_a_second_time_is_not_taken_back(tmp_path):
    save(tmp_path / "points", Spec(replace(POINTS, times=2)))
    with pytest.raises(InvalidInput, match=r"condition\.project\.0\.weight is \(64, 128\) and not \(64, 64\)"):
        begin(tmp_path / "points", POINTS)


def test_training_starts_where_it_is_told(tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "map"
    assert run("train", "cfm", "--steps", 2, "--batch", 4, "--out", teacher, *SMALL) == 0
    words = ("train", "lsd", "--steps", 1, "--batch", 8, "--start", teacher, "--learning-rate", "1e-9", "--out", out)
    assert run(*words, *SMALL) == 0
    weights, first = (checkpoint.load(folder)[0].state_dict() for folder in (out, teacher))
    for name, weight in first.items():
        torch.testing.assert_close(weights[name][:, : weight.shape[1]] if weight.ndim == 2 else weights[name], weight)
    assert checkpoint.load_spec(out).provenance["start"] == checkpoint.weights_sha256(teacher)
    assert run("train", "lsd", "--steps", 1, "--start", teacher, "--out", tmp_path / "other", "--watch", 0) == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "spec", "said"),
    [
        (
            ("lsd",),
            ("vp-linear", "noise", "ddim"),
            "predicts noise on the path vp-linear, the recipe 'lsd' velocity on li",
        ),
        (
            ("cfm",),
            ("linear", "image", "ddim"),
            "predicts image on the path linear, the recipe 'cfm' velocity on linear",
        ),
        (
            ("ddpm",),
            ("linear", "velocity", "euler"),
            "predicts velocity on the path linear, the recipe 'ddpm' noise on vp-",
        ),
        (
            ("ddpm", "--path", "vp-cosine"),
            ("vp-linear", "noise", "ddim"),
            "on the path vp-linear, the recipe 'ddpm' noise",
        ),
        (
            ("ddpm", "--prediction", "v"),
            ("vp-linear", "noise", "ddim"),
            "predicts noise on the path vp-linear, the rec",
        ),
    ],
)
@pytest.mark.parametrize("last", [("--print-config",), ("--out", "run")], ids=" ".join)
def test_weights_that_say_another_thing_are_no_start(words, spec, said, last, tmp_path, refusal, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = save(tmp_path / "start", Spec(UNET, *spec))
    assert said in refusal("train", *words, "--start", start, *last)
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


@pytest.mark.parametrize("last", [("--print-config",), ("--out", "run")], ids=" ".join)
def test_an_engine_is_no_teacher_and_no_start(last, tiny_engine, clean_refusal):
    said = "an engine; expected the checkpoint that it was exported from"
    pairs = ("--pairs", "nowhere")
    assert f"--teacher is '{tiny_engine}', {said}" in clean_refusal(
        "distill", "lines", "--teacher", tiny_engine, *pairs, *last
    )
    assert f"--start is '{tiny_engine}', {said}" in clean_refusal("train", "cfm", "--start", tiny_engine, *last)


def test_an_engine_is_not_exported_again(tiny_engine, clean_refusal):
    assert "an engine; expected the checkpoint" in clean_refusal("export", tiny_engine, "--out", "x.engine")
    assert "an engine; expected the checkpoint" in clean_refusal("bake", tiny_engine, "--guidance", 2, "--out", "x")


def test_the_recipe_lies_beside_its_checkpoint_and_makes_it_again(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    assert run("train", "meanflow", "--steps", 2, "--batch", 4, "--out", first, *SMALL) == 0
    told = yaml.safe_load((first / "recipe.yaml").read_text())
    provenance = checkpoint.load_spec(first).provenance
    assert {**provenance, "network": told["network"]} == told
    assert (told["options"]["guidance"], told["network"]["channels"]) == (2.0, 8)
    assert not checkpoint.load_spec(first).null_label
    assert run("train", "meanflow", "--config", first / "recipe.yaml", "--out", again, "--watch", 0) == 0
    assert (again / "recipe.yaml").read_text() == (first / "recipe.yaml").read_text()
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(first)
    assert run("train", "meanflow", "--config", first / "recipe.yaml", "--out", again, "--seed", 1) == 2


def test_guidance_in_the_target_is_not_given_again(tmp_path, capsys):
    assert not spec_of(recipe("meanflow")).null_label
    assert spec_of(recipe("meanflow", guidance=1.0)).null_label
    assert not spec_of(recipe("cfm", label_dropout=0.0)).null_label
    guided = recipe("improved-meanflow", **{"network.guided": True})
    assert not spec_of(guided).null_label
    with pytest.raises(InvalidInput, match="guidance is 2; expected 1 with label_dropout=0 and 10 classes"):
        spec_of(recipe("meanflow", label_dropout=0.0))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_a_teacher_of_noise_says_what_its_recipe_says(name, tmp_path):
    teacher = save(tmp_path / "teacher", Spec(POINTS, "vp-cosine", "noise", "ddim", True, {"data": "dots"}))
    assert commands.distil(name, teacher, pairs_of(tmp_path / "pairs"), tmp_path / "student", **QUICK)
    spec = checkpoint.load_spec(tmp_path / "student")
    says = ("linear", "image", "ddim") if name in ("lines", "naive") else ("linear", "velocity", "euler")
    assert (spec.path, spec.prediction, spec.solver, spec.null_label) == (*says, False)
    assert (spec.network, spec.provenance["data"]) == (POINTS, "dots")
    assert spec.provenance["teacher"] == checkpoint.weights_sha256(teacher)
    assert spec.provenance["pairs"]["count"] == 8
    assert np.isfinite(load(tmp_path / "student").sample(3, steps=2, label=1).states).all()


@pytest.mark.parametrize(("shape", "kind"), [((2,), MLP), ((5,), MLP), ((1, 16, 16), UNet), ((3, 32, 32), UNet)])
def test_a_student_without_a_teacher_gets_a_network_that_fits_the_pairs(shape, kind, tmp_path):
    pairs = pairs_of(tmp_path / "pairs", shape, 4, count=4)
    network = commands.student("reflow", pairs=pairs).network
    assert (type(network), network.shape, network.classes) == (kind, shape, 4)


def test_a_student_without_a_teacher_is_trained(tmp_path):
    pairs = pairs_of(tmp_path / "pairs")
    assert run("distill", "lines", "--pairs", pairs, "--out", tmp_path / "s", "--steps", 2, "--batch", 4) == 0
    provenance = checkpoint.load_spec(tmp_path / "s").provenance
    assert ("teacher" in provenance, provenance["data"]) == (False, "pairs")
    odd = pairs_of(tmp_path / "odd", (3, 12, 12), 4, count=4)
    words = ("distill", "grid", "--pairs", odd, "--out", tmp_path / "o", "--steps", 2, "--batch", 4)
    assert run(*words) == 2
    assert run(*words, *SMALL[:-4], "--network.attention", 12, "--watch", 0) == 0


def test_a_teacher_that_does_not_fit_its_pairs_is_refused(tmp_path, capsys):
    teacher = save(tmp_path / "teacher", Spec(POINTS))
    guided = save(tmp_path / "guided", Spec(replace(POINTS, guided=True)))
    for name, of, pairs, said in (
        ("a", teacher, pairs_of(tmp_path / "three", (3,)), "have shape (3,) and 3 classes, the teacher"),
        ("b", teacher, pairs_of(tmp_path / "four", classes=4), "have shape (2,) and 4 classes, the teacher"),
        ("c", guided, pairs_of(tmp_path / "pairs"), "the network takes the guidance as an input"),
    ):
        capsys.readouterr()
        assert run("distill", "reflow", "--teacher", of, "--pairs", pairs, "--out", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not list(tmp_path.glob(f"{name}*"))
    words = ("distill", "reflow", "--teacher", teacher, "--pairs", tmp_path / "pairs", "--network.width", 16)
    assert run(*words, "--out", tmp_path / "d") == 2
    assert "condition.label.weight is (4, 8) and not (4, 16)" in capsys.readouterr().err
    assert not list(tmp_path.glob("d*"))


def test_print_config_of_a_student_knows_its_teacher(tmp_path, capsys):
    teacher = save(tmp_path / "teacher", Spec(POINTS, provenance={"data": "checkerboard"}))
    assert run("distill", "reflow", "--teacher", teacher, "--print-config") == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert (told["network"]["width"], told["network"]["classes"], told["data"]) == (8, 3, "checkerboard")
    assert told["batch"] == recipe("reflow", "checkerboard").batch


def test_points_of_a_law_are_drawn_afresh(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(commands, "train", lambda setting, spec, draw, *_, **__: drawn.append((draw(500), draw(500))))
    commands.train_teacher("cfm", "checkerboard", tmp_path / "out")
    ((first, second),) = drawn
    fixed = commands.load_dataset("checkerboard").images
    assert not torch.isin(first.image, second.image).any()
    assert not torch.isin(first.image, fixed).all(1).any()


def test_a_judge_lends_its_features(tmp_path):
    judge, out = tmp_path / "judge", tmp_path / "out"
    assert run("train", "classifier", "--steps", 1, "--batch", 8, "--out", judge) == 0
    words = ("train", "cfm", "--steps", 2, "--batch", 4, "--out", out, *SMALL[:-2], "--watch", 2, "--judge", judge)
    assert run(*words) == 0
    logged = [json.loads(line) for line in (tmp_path / "out.log" / "log.jsonl").read_text().splitlines()]
    assert any("digits-classifier" in name for line in logged for name in line), logged
    assert (tmp_path / "out.log" / "step-000002.png").is_file()
    points = ("train", "cfm", "--data", "checkerboard", "--out", tmp_path / "points", "--judge", judge)
    assert run(*points) == 2
    assert not (tmp_path / "points").exists()
