"""`pyflow eval` on the command line: what it prints, and what it refuses before anything is sampled."""

import json

import numpy as np
import pytest
from pyflow.training import data
from tiny import UNET

from pyflow import eval_setting, load
from pyflow.engines.runner import SamplerRunner, WholePlan


def told(source, judge, out, **others):
    words = {"data": "tiny", "features": f"classifier:{judge}", "out": out, "num-samples": 60, "seeds": 2, **others}
    return ["eval", source, *(word for name, value in words.items() for word in (f"--{name}", value))]


def test_the_command_prints_a_table(judge, tiny_checkpoint, tmp_path, capsys):
    from pyflow.cli import main

    words = told(tiny_checkpoint, judge, tmp_path / "a.json", steps="1,2")
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    assert "tiny classifier, 48 features; 2 seeds of 60 pictures; interval: 95%, Student's t over the seeds" in printed
    assert "held out" in printed
    command = json.loads((tmp_path / "a.json").read_text())["facts"]["command"]
    assert command.startswith("pyflow eval checkpoint --threads 0")
    assert "classifier:judge" in command
    assert str(tmp_path) not in command


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"num-samples": 48}, "num_samples is 48; a covariance of 48 features needs 49 pictures or more"),
        ({"num-samples": 0}, "num_samples is 0; expected 1 to"),
        ({"seeds": 0}, "seeds is 0; expected 1 to"),
        (
            {"data": "checkerboard"},
            "the network makes (1, 8, 8) of 3 classes, the pictures of checkerboard are (2,) of 0",
        ),
        ({"data": "nowhere"}, "data is 'nowhere'; expected one of"),
        ({"features": "vgg"}, "features is 'vgg'; expected one of classifier:FOLDER"),
        ({"features": "classifier:nowhere"}, "nowhere holds no classifier.json"),
        ({"features": "inception:nowhere.pt"}, "features inception"),
        ({"features": "dino:nowhere"}, "expected dino:FOLDER"),
        ({"out": "a.txt"}, "--out is 'a.txt'; expected a name that ends in .json"),
        ({"steps": "0"}, "steps is 0; expected 1 to"),
        ({"guidance": -1}, "guidance is -1.0; expected a number from 0 to 100"),
        ({"grid": "searched"}, "grid is 'searched' for 1 steps"),
        ({"against": "nowhere"}, "nowhere does not exist"),
        ({"against-steps": 4}, "--against-steps is 4; expected none without --against TEACHER"),
        ({"against-guidance": 2}, "--against-guidance is 2.0; expected none without --against TEACHER"),
    ],
    ids=str,
)
def test_refusals(words, sentence, judge, tiny_checkpoint, tmp_path, refusal, sampled):
    assert sentence in refusal(*told(tiny_checkpoint, judge, **{"out": tmp_path / "a.json", **words}))
    assert not (tmp_path / "a.json").exists()
    assert not sampled or "guidance" in words


COLOURS = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (None, "holds no pictures for train"),
        (np.zeros((9, 9, 3), np.uint8), "has shape (3, 9, 9); expected (3, 8, 8)"),
        (np.zeros((8, 8), np.uint8), "has the mode 'L'; expected 'RGB'"),
        (np.zeros((8, 8), np.uint16), "has the mode 'I;16'; expected 'RGB'"),
    ],
    ids=["empty", "of two sizes", "grey among colours", "16 bits"],
)
def test_a_folder_of_bad_pictures_is_refused(second, sentence, judge, tiny_checkpoint, tmp_path, refusal, sampled):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "folder" / "train").mkdir(parents=True)
    for name, pixels in (("a", COLOURS), ("b", second)):
        if second is not None:
            image.fromarray(pixels).save(tmp_path / "folder" / "train" / f"{name}.png")
    words = told(tiny_checkpoint, judge, tmp_path / "a.json", data=tmp_path / "folder")
    assert sentence in refusal(*words)
    assert not sampled


def test_a_classifier_of_other_data_is_refused(judge, tiny_checkpoint, tmp_path, refusal, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "others", lambda part="train": data.DATASETS["tiny"](part))
    record = json.loads((judge / "classifier.json").read_text())
    (judge / "classifier.json").write_text(json.dumps({**record, "data": "others"}))
    sentence = refusal(*told(tiny_checkpoint, judge, tmp_path / "a.json"))
    assert "is a classifier of 'others'; expected one of 'tiny'" in sentence


def test_whole_samplers_of_other_plans_are_refused_before_anything_is_looked_at(
    judge, tiny_checkpoint, tmp_path, refusal, monkeypatch
):
    flow = load(tiny_checkpoint)
    held = WholePlan(flow.plan(2), 1.0, lambda feed: [feed["noise"]])
    flow.runner = SamplerRunner([held], UNET.shape)
    monkeypatch.setattr(eval_setting, "open_source", lambda *_: flow)
    monkeypatch.setattr(eval_setting, "reference", lambda *_: pytest.fail("looked at the reference"))
    words = told(tiny_checkpoint, judge, tmp_path / "a.json")
    sentence = "this engine holds whole samplers for 2 rows at guidance 1"
    assert f"asked for 3 rows at guidance 1; {sentence}" in refusal(*words, "--steps", "2,3")
    assert sentence in refusal(*words, "--steps", "2", "--search-grid")


def test_a_search_destroys_no_evaluation(judge, tiny_checkpoint, tmp_path, refusal, sampled):
    out = tmp_path / "a.json"
    for content in ('{"kind": "eval", "rows": []}', "[]"):
        out.write_text(content)
        sentence = refusal(*told(tiny_checkpoint, judge, out), "--steps", "2", "--search-grid")
        assert "which holds no grid search; expected one, or a name that is free" in sentence
        assert out.read_text() == content
    assert not sampled


def test_a_search_of_one_step_or_of_several_is_refused(judge, tiny_checkpoint, tmp_path, refusal):
    words = told(tiny_checkpoint, judge, tmp_path / "a.json")
    assert "a grid of one step has no time to choose" in refusal(*words, "--steps", "1", "--search-grid")
    assert "expected one count for --search-grid" in refusal(*words, "--steps", "2,4", "--search-grid")
    for other in (("--grid", "cosine"), ("--against", tiny_checkpoint)):
        assert "neither grid nor against" in refusal(*words, "--steps", "2", "--search-grid", *other)
