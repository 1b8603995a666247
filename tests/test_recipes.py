"""Recipes: one for every method, out as YAML and back, over which a file goes and flags over that; one sentence for
what does not fit."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pyflow.training import fields
from pyflow.training.recipes import SIZES, STUDENTS, TEACHERS, Options, Recipe, recipe

from pyflow.cli import main
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.spec import MLP, UNet

METHODS = {**TEACHERS, **STUDENTS}
PLACES = [("digits", None), ("checkerboard", None), *(("faces", size) for size in SIZES)]


def printed(capsys, *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def command_of(name: str) -> str:
    return "train" if name in TEACHERS else "distill"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_on_all_data_that_its_objective_takes(name):
    from pyflow.training.beginnings import spec_of
    from pyflow.training.objectives import OBJECTIVES, objective

    for data, size in PLACES:
        setting = recipe(name, data, size=size)
        classes = 0 if data == "checkerboard" else 10
        assert (setting.name, setting.objective, setting.data) == (name, name, data)
        assert (setting.network.classes, setting.network.times) == (
            classes,
            2 if OBJECTIVES[name].two_times else 1,
        )
        spec = spec_of(setting)
        objective(setting.objective, spec, setting.options)
        baked = name in STUDENTS or setting.options.guidance > 1
        assert spec.null_label == (classes > 0 and not baked)
        assert spec.plan((0.0, 0.5, 1.0))


def test_the_networks_of_the_sizes_are_as_large_as_their_names():
    from pyflow.models import build, parameters

    for size, network in SIZES.items():
        assert recipe("lsd", "faces", size=size).network == dataclasses.replace(network, times=2)
        millions, named = parameters(build(network)) / 1e6, int(size[:-1])
        assert abs(millions / named - 1) < 0.1 or (named == 1 <= millions < 1.5), f"{size} has {millions:.2f} million"
    assert recipe("cfm", "faces") == recipe("cfm", "faces", size="1m")


def another(rng, setting: Recipe) -> Recipe:
    """The recipe with numbers of its fields changed at random."""
    share = float(rng.random())
    return fields.changed(
        setting,
        {
            "steps": int(rng.integers(1, 10**6)),
            "learning_rate": 10 ** -float(rng.uniform(1, 9)),
            "half_lives": tuple(rng.random(3).tolist()),
            "flip": bool(rng.integers(2)),
            "diagonal": 1 - share / 2,
            "learned_weight": bool(rng.integers(2)),
            "seed": int(rng.integers(2**62)),
            "data": ["no", "1e3", "a: b", "faces # of"][rng.integers(4)],
            **({"network.attention": ()} if isinstance(setting.network, UNet) else {"network.width": 33}),
        },
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_goes_out_as_yaml_and_comes_back_the_same(name, rng, tmp_path):
    for data, size in PLACES:
        setting = another(rng, recipe(name, data, size=size))
        (tmp_path / "recipe.yaml").write_text(fields.to_yaml(setting))
        assert recipe(name, file=tmp_path / "recipe.yaml") == setting


@pytest.mark.parametrize("name", ["lsd", "naive"])
def test_what_is_printed_may_be_given_back(name, capsys, tmp_path):
    changes = ["--steps", 7, "--half-lives", "0.1,0.2", "--compile", "--weight-decay", "1e-1", "--network.channels", 32]
    first = printed(capsys, command_of(name), name, "--print-config", *changes)
    (tmp_path / "a.yaml").write_text(first)
    assert printed(capsys, command_of(name), name, "--print-config", "--config", tmp_path / "a.yaml") == first
    setting = recipe(name, file=tmp_path / "a.yaml")
    assert (setting.steps, setting.half_lives, setting.compile, setting.weight_decay) == (7, (0.1, 0.2), True, 0.1)
    assert setting.network.channels == 32
    assert not [path for path in tmp_path.iterdir() if path.name != "a.yaml"]


def test_flags_go_over_a_file_and_a_file_over_the_recipe(capsys, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("batch: 5\nlearning_rate: 1e-5\noptions: {gap: 0.5, times: u-shaped}\nnetwork:\n  channels: 16\n")
    text = printed(
        capsys, "train", "consistency", "--config", file, "--print-config", "--gap", "0.125", "--batch", 3, "--no-flip"
    )
    (tmp_path / "whole.yaml").write_text(text)
    plain, setting = recipe("consistency"), recipe("consistency", file=tmp_path / "whole.yaml")
    options = dataclasses.replace(plain.options, gap=0.125, times="u-shaped")
    network = dataclasses.replace(plain.network, channels=16)
    assert setting == dataclasses.replace(plain, batch=3, learning_rate=1e-5, options=options, network=network)
    assert recipe("consistency", "faces", file=tmp_path / "whole.yaml").data == "faces"


def test_a_network_of_another_kind_is_built_from_its_fields_alone(tmp_path):
    (tmp_path / "a.yaml").write_text("network: {kind: mlp, shape: [3], width: 8}")
    assert recipe("cfm", file=tmp_path / "a.yaml").network == MLP(shape=(3,), width=8)


def test_every_field_has_a_flag():
    known = {field.name for of in (Recipe, Options) for field in dataclasses.fields(of)} - {"network", "options"}
    known |= {f"network.{field.name}" for of in (MLP, UNet) for field in dataclasses.fields(of)} | {"network.kind"}
    assert set(fields.FIELDS) == known
    for command in ("train", "distill"):
        done = subprocess.run([sys.executable, "-m", "pyflow.cli", command, "--help"], capture_output=True, text=True)
        for name in known - {"name", "data"}:
            assert f"--{name.replace('_', '-')}" in done.stdout, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "many"), "steps is 'many'; expected a whole number"),
        (("--steps", "1.5"), "steps is '1.5'; expected a whole number"),
        (("--learning-rate", "fast"), "learning_rate is 'fast'; expected a number"),
        (("--learning-rate", "nan"), "learning_rate is nan; expected a number above 0"),
        (("--clip", "inf"), "clip is inf; expected a number above 0"),
        (("--half-lives", "0.1,x"), "half_lives is '0.1,x'; expected numbers, such as 0.03,0.05"),
        (("--diagonal", "2"), "diagonal is 2.0; expected above 0 and at most 1"),
        (("--network.channels", "9"), "channels is 9; expected a multiple of 8"),
        (("--network.width", "9"), "a network of the kind unet has no width; it has shape"),
        (("--network.kind", "cnn"), "network.kind is 'cnn'; expected one of mlp, unet"),
        (("--network.extra", "3"), "network.extra is 3; expected 0, or 2 for what is kept of a picture and its mask"),
        (("--size", "5m", "--data", "faces"), "size is '5m'; expected one of 1m, 9m, 36m"),
        (("--size", "9m"), "size is '9m'; expected none: the network of digits comes in one size"),
        (("--data", "nowhere"), "data is 'nowhere'; expected one of digits, checkerboard, cifar10, or a folder"),
        (("--data", "checkerboard", "--network.classes", "3"), "data 'checkerboard' has shape (2,) and 0 classes"),
        (("--network.shape", "1,8,8"), "--network.shape 1,16,16 --network.classes 10"),
        (("--config", "nowhere.yaml"), "nowhere.yaml cannot be read (No such file or directory)"),
        (("--data", "checkerboard", "--flip"), "flip is True; expected False: points have no mirror image"),
        (("--start", "nowhere"), "nowhere/spec.json is missing"),
        (("--judge", "nowhere"), "nowhere holds no classifier.json"),
        (("--device", "tpu"), "device is 'tpu'; expected cpu or cuda"),
        (("--logs", "paper"), "logs names 'paper'; expected some of tensorboard, wandb"),
        (("--objective", "gan"), "objective is 'gan'; expected one of cfm"),
        (("--objective", "lsd"), "times is 1; lsd expected a network with times=2"),
        (("--guidance", "2"), "guidance is 2; expected 1: only MeanFlow"),
        (("--guidance", "2", "--label-dropout", "0"), "the network learns no null label to guide away from"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(words, said, clean_refusal):
    assert said in clean_refusal("train", "cfm", "--steps", 1, "--batch", 2, "--out", "run", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "cfm"), "--out is missing; expected the checkpoint's folder"),
        (("train", "lines", "--print-config"), "consistency, inpaint: `pyflow distill lines` trains that one"),
        (("train", "reflow", "--out", "x"), "recipe is 'reflow'; expected one of cfm, ddpm"),
        (("distill", "cfm", "--print-config"), "reflow, grid, lines, naive: `pyflow train cfm` trains that one"),
        (("distill", "inpaint", "--print-config"), "`pyflow train inpaint` trains that one"),
        (("train", "cfm", "--print-config", "--objective", "lsd"), "times is 1; lsd expected a network with times=2"),
        (
            ("train", "cfm", "--print-config", "--objective", "grid"),
            "objective is 'grid'; expected one that learns from d",
        ),
        (("train", "cfm", "--print-config", "--gap", "0.1"), "gap is 0.1; expected 0.02: cfm does not read it"),
        (("train", "ddpm", "--print-config", "--solver", "ab2"), "ab2"),
        (("train", "lsd", "--print-config", "--flip", "--data", "checkerboard"), "points have no mirror image"),
        (
            ("distill", "lines", "--print-config", "--prediction", "velocity"),
            "prediction is 'velocity'; lines expected",
        ),
        (("train", "cfm", "--wings", "3"), "`pyflow train` has no flag --wings; expected one of its own: --help shows"),
        (("train", "cfm", "--learning_rate=3"), "`pyflow train` has no flag --learning_rate; expected --learning-rate"),
        (("distill", "grid", "--network.chanels", "8"), "has no flag --network.chanels; expected --network.channels"),
        (("distill", "grid", "--wings", "3"), "--help shows all flags, --print-config the recipe's fields"),
        (("train", "cfm", "digits"), "`pyflow train` was told 'digits', which belongs to no flag"),
        (("sample", "x", "--lable", "3"), "`pyflow sample` has no flag --lable; expected --label"),
        (("report", "lines", "--wings"), "`pyflow report lines` has no flag --wings"),
        (("report", "a.json", "--wings"), "`pyflow report` has no flag --wings"),
        (("distill", "lines", "--out", "x"), "--pairs is missing; expected the pairs' folder"),
        (("distill", "lines", "--out", "x", "--pairs", "nowhere"), "nowhere/manifest.json is missing"),
        (("distill", "lines", "--out", "x", "--pairs", "y", "--teacher", "nowhere"), "nowhere/spec.json is missing"),
        (("train", "classifier", "--out", "x", "--start", "y"), "start is y for a classifier; expected only steps"),
    ],
)
def test_what_is_missing_is_named(words, said, clean_refusal):
    assert said in clean_refusal(*words)


@pytest.mark.parametrize(
    ("shape", "classes"), [((3, 8, 8), 2), ((1, 28, 28), 10), ((3, 9, 7), 0), ((3, 64, 64), 3), ((2,), 0)], ids=str
)
@pytest.mark.parametrize("name", ["cfm", "lsd"])
def test_the_flags_that_are_suggested_for_other_data_work(shape, classes, name):
    from pyflow.training.beginnings import refuse_other_data, refuse_untrainable

    for data, size in PLACES:
        setting = recipe(name, data, size=size)
        if (setting.network.shape, setting.network.classes) == (shape, classes):
            continue
        with pytest.raises(InvalidInput, match="or a network that fits: --network") as told:
            refuse_other_data(setting, shape, classes)
        words = shlex.split(str(told.value).partition("fits: ")[2])
        changes = {flag[2:]: fields.typed(flag[2:], value) for flag, value in zip(words[::2], words[1::2])}
        fitted = recipe(name, data, size=size, pooled=False, **changes)
        assert (fitted.network.shape, fitted.network.classes, fitted.network.times) == (
            shape,
            classes,
            setting.network.times,
        )
        refuse_untrainable(dataclasses.replace(fitted, flip=False), pairs=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "holds None; expected names and values"),
        (b"- steps\n- 3\n", "holds ['steps', 3]; expected names and values"),
        (b"steps", "holds 'steps'; expected names and values"),
        (b"steps: [1", "is no YAML (while parsing a flow sequence"),
        (b"\xff\xfe\x00", "is no YAML ("),
        (b"steps: !!python/object/apply:os.getcwd []", "is no YAML (could not determine a constructor"),
        (b"when: 2020-13-45", "is no YAML (month must be in 1..12"),
        (b"[" * 5000, "is no YAML ("),
        (b"#" * 70_000, "has more than 65536 bytes"),
        (b"stepz: 3", "a recipe has no field stepz; it has name, objective"),
        (b"diagonal: 0.5", "a recipe has no field diagonal; it has name, objective"),
        (b"1: 2", "a recipe has no field 1; it has"),
        (b"options: {steps: 3}", "options has no field steps; it has times, jump"),
        (b"options: 3", "options holds 3; expected names and values"),
        (b"network: {wings: 2}", "a recipe has no field network.wings; it has"),
        (b"steps: many", "steps is 'many'; expected a whole number"),
        (b"steps: 2.0", "steps is 2.0; expected a whole number"),
        (b"steps: true", "steps is True; expected a whole number"),
        (b"steps: ", "steps is None; expected a whole number"),
        (b"flip: 1", "flip is 1; expected true or false"),
        (b"flip: 'yes'", "flip is 'yes'; expected true or false"),
        (b"learning_rate: 1e-3x", "learning_rate is '1e-3x'; expected a number"),
        (b"learning_rate: false", "learning_rate is False; expected a number"),
        (b"half_lives: 0.1", "half_lives is 0.1; expected numbers, such as"),
        (b"half_lives: {a: 1}", "half_lives is {'a': 1}; expected numbers, such as"),
        (b"network: {multipliers: [1, two]}", "network.multipliers is [1, 'two']; expected whole numbers, such as"),
        (b"path: 3", "path is 3; expected a word"),
        (b"path: crooked", "path is 'crooked'; expected one of linear"),
        (b"name: lsd", "is a recipe of 'lsd'; expected one of 'cfm'"),
        (b"a: &a [x,x,x,x,x,x]\nsteps: [*a,*a,*a]\n", "a recipe has no field a;"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(text, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd.yaml").write_bytes(text)
    assert main(["train", "cfm", "--steps", "1", "--out", "run", "--config", "odd.yaml"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert len(error) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["odd.yaml"]


def test_yaml_that_grows_is_not_written_out(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*lines, "steps: *a11"]))
    with pytest.raises(InvalidInput, match="has no field a0"):
        fields.read_yaml(tmp_path / "bomb.yaml")
    (tmp_path / "bomb.yaml").write_text("half_lives: " + "[" * 40 + "]" * 40)
    with pytest.raises(InvalidInput, match="half_lives is "):
        fields.read_yaml(tmp_path / "bomb.yaml")


def test_a_size_beside_a_file_that_names_its_network_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("network: {channels: 64}")
    (tmp_path / "b.yaml").write_text("steps: 5")
    with pytest.raises(InvalidInput, match="size is '9m'; expected none beside a file that names its network"):
        recipe("cfm", "faces", size="9m", file=tmp_path / "a.yaml")
    assert recipe("cfm", "faces", size="9m", file=tmp_path / "b.yaml").steps == 5


def test_without_pyyaml_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[train\]"'):
        fields.to_yaml(recipe("cfm"))


def test_printing_a_recipe_needs_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None; from pyflow.cli import main; "
        "sys.exit(main(['train', 'lsd', '--print-config']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("name: lsd\n")
