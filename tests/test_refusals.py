"""What cannot be done, and what would be passed over in silence, is refused in one sentence."""

import dataclasses
import json

import pytest
import torch
from pyflow.training import classifier
from pyflow.training.data import digits
from pyflow.training.pairs import PairsSpec, generate
from pyflow.training.recipes import SIZES, recipe
from tiny import POINTS, UNET, save

from pyflow import checkpoint, commands
from pyflow.cli import main
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.spec import Spec


# ---- the classifier
@pytest.fixture
def judge(tmp_path):
    classifier.train(tmp_path / "judge", digits(), steps=1, batch=8)
    return tmp_path / "judge"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--steps 5", "holds another classifier (steps 1); name another folder"),
        ("--seed 3", "holds another classifier (seed 0); name another folder"),
        ("--data nowhere", "data is 'nowhere'; expected one of digits"),
        ("--data checkerboard", "holds another classifier (data 'digits'); name another folder"),
        ("--device cuda", "device is cuda for a classifier; expected only steps, batch, seed"),
        ("--watch 0", "watch is 0 for a classifier; expected only steps, batch, seed"),
        ("--logs wandb", "logs is wandb for a classifier; expected only steps, batch, seed"),
        ("--print-config", "print_config is True for a classifier; expected only steps, batch, seed"),
    ],
)
def test_a_finished_classifier_is_held_to_what_is_asked(judge, refusal, words, expected):
    assert expected in refusal("train", "classifier", "--out", judge, *words.split())


def test_the_same_classifier_is_finished_already(judge, capsys):
    assert main(["train", "classifier", "--out", str(judge), "--steps", "1", "--batch", "8", "--data", "digits"]) == 0
    assert "was finished already" in capsys.readouterr().out


def test_points_have_no_classifier(tmp_path, refusal):
    words = ("train", "classifier", "--data", "checkerboard", "--out", tmp_path / "judge")
    assert "data is 'checkerboard'; a classifier expected pictures of two classes" in refusal(*words)
    assert not list(tmp_path.iterdir())


# ---- data
def test_a_folder_with_the_name_of_a_known_data_set_is_refused(tmp_path, refusal):
    (tmp_path / "digits").mkdir()
    words = ("train", "cfm", "--data", tmp_path / "digits", "--out", tmp_path / "run")
    assert "digits means pyflow's own; expected another name: rename the folder" in refusal(*words)
    (tmp_path / "recipe.yaml").write_text("data: faces\n")
    words = ("train", "cfm", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert "a folder of parquet files or pictures that is there: --data FOLDER" in refusal(*words)


# ---- students
@pytest.fixture
def points(tmp_path):
    """The folder of pairs of points."""
    spec = PairsSpec("abc", (2,), 0, count=8, seed=5, solver="euler", steps=1, guidance=1.0)
    generate(lambda first, labels: labels.repeat(2).reshape(-1, 2).astype("float32"), spec, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_points_have_no_lpips(points, tmp_path, refusal):
    words = ("distill", "reflow", "--pairs", points, "--out", tmp_path / "run", "--lpips", 1)
    assert "lpips is 1; expected 0: points are no pictures to look at" in refusal(*words)


def test_pairs_are_not_mirrored(points, tmp_path, refusal):
    words = ("distill", "reflow", "--pairs", points, "--out", tmp_path / "run", "--flip")
    assert "flip is True; expected False: noise and picture of a pair belong together" in refusal(*words)


@pytest.mark.parametrize("size", SIZES)
def test_a_student_has_the_recipe_of_its_teachers_size(tmp_path, size, refusal):
    network = dataclasses.replace(SIZES[size], shape=(3, 64, 32), attention=(16,), classes=3, dropout=0.1)
    checkpoint.save(tmp_path / "teacher", torch.nn.Identity(), Spec(network, provenance={"data": "faces"}))
    came = commands.student("reflow", tmp_path / "teacher")
    assert came == dataclasses.replace(recipe("reflow", "faces", size=size), network=network)
    assert commands.student("reflow", tmp_path / "teacher", size=size) == came
    other = "1m" if size == "9m" else "9m"
    words = ("distill", "reflow", "--teacher", tmp_path / "teacher", "--print-config", "--size", other)
    assert f"size is '{other}'; expected {size}: the network is the teacher's" in refusal(*words)


# ---- checkpoints that were edited
def edited(folder, change) -> None:
    record = json.loads((folder / "spec.json").read_text())
    change(record)
    (folder / "spec.json").write_text(json.dumps(record))


def test_a_spec_without_its_weights_hash_is_refused(tmp_path):
    folder = save(tmp_path / "checkpoint", Spec(POINTS))
    edited(folder, lambda record: record["sha256"].clear())
    with pytest.raises(InvalidArtefact, match=r"has no hash of weights\.safetensors; it is incomplete"):
        commands.describe(folder)


@pytest.mark.parametrize("options", ["x", [], {"guidance": "much"}, {}], ids=str)
def test_what_is_baked_may_tell_no_guidance(tmp_path, options):
    guided = Spec(dataclasses.replace(UNET, guided=True), provenance={"options": options})
    commands.bake(save(tmp_path / "guided", guided), tmp_path / "baked", 3.0)


def test_the_largest_guidance_is_kept_to(tmp_path):
    guided = Spec(dataclasses.replace(UNET, guided=True), provenance={"options": {"guidance": 2.5}})
    with pytest.raises(InvalidInput, match=r"guidance is 3; expected 1 to 2\.5"):
        commands.bake(save(tmp_path / "guided", guided), tmp_path / "baked", 3.0)
