"""Whose log it is: no run takes another's, none loses lines that it does not write again."""

import json
import shutil
from dataclasses import replace

import pytest
from pyflow.training.logs import folder_of
from tiny_runs import RECIPE, Interrupted, data, interrupted, run

from pyflow.errors import InvalidInput

LONG = replace(RECIPE, steps=45)


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder_of(folder) / "log.jsonl").read_text().splitlines()]


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STRANGE = {
    "another's lines": {"log.jsonl": b'{"step": 3, "loss": 9}\n'},
    "no lines": {"log.jsonl": b"when,what\nnonsense\n"},
    "no text": {"log.jsonl": b"\xff\xfe\n"},
    "deep": {"log.jsonl": b"[" * 100_000 + b"\n"},
    "a picture": {"step-999999.png": b"png"},
    "odd names": {"log.jsonl": b'{"step": 1}\n', "step-abc.png": b"png"},
    "another run's record": {"run.json": b'{"run": "0"}'},
    "a damaged record": {"run.json": b"{"},
}


@pytest.mark.parametrize("files", STRANGE.values(), ids=STRANGE.keys())
def test_a_new_run_takes_nobody_elses_log(tmp_path, files):
    log = folder_of(tmp_path / "run")
    log.mkdir()
    for name, content in files.items():
        (log / name).write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(
        InvalidInput, match=r"run\.log.*: move run\.log away, or name another folder for the run$"
    ) as told:
        run(tmp_path / "run")
    assert "\n" not in str(told.value)
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run.log").write_bytes(b"mine")
    with pytest.raises(InvalidInput, match=r"run\.log is a file; expected a folder, or a name that is free"):
        run(tmp_path / "run")
    with pytest.raises(
        InvalidInput, match=r"run\.log is a file; expected a folder to make x\.log in, or a name that is fr"
    ):
        run(tmp_path / "run.log" / "x")
    assert contents(tmp_path) == {"run.log": b"mine"}


def test_a_run_that_was_killed_before_its_first_save_begins_its_log_anew(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", LONG, interrupted(data(LONG), 30), watch=10, save_every=40)
    (folder_of(tmp_path / "run") / "mine.txt").write_text("kept")
    (folder_of(tmp_path / "run") / "step-abc.png").write_text("kept")
    (folder_of(tmp_path / "run") / ".log.jsonl.0123abcd.tmp").write_text("swept")
    run(tmp_path / "run", LONG, watch=0, save_every=40)
    assert steps(tmp_path / "run") == [1, 20, 40, 45]
    assert {*contents(folder_of(tmp_path / "run"))} == {"log.jsonl", "run.json", "mine.txt", "step-abc.png"}


def test_the_log_of_a_checkpoint_that_is_gone_is_kept(tmp_path):
    run(tmp_path / "run", LONG, save_every=7)
    shutil.rmtree(tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(
        InvalidInput, match=r"run\.log goes to step 45, and the checkpoint that it belongs to is gone: move"
    ):
        run(tmp_path / "run", LONG, save_every=7)
    assert contents(tmp_path) == before
    folder_of(tmp_path / "run").rename(tmp_path / "before")
    assert run(tmp_path / "run", LONG, save_every=7)


def test_another_recipe_does_not_begin_in_the_log_of_one_that_was_killed(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", LONG, interrupted(data(LONG), 3), save_every=7)
    with pytest.raises(InvalidInput, match=r"run\.log holds log\.jsonl, run\.json, which another run or program wrote"):
        run(tmp_path / "run", replace(LONG, seed=1), save_every=7)
    assert steps(tmp_path / "run") == [1]


def test_a_resumed_run_drops_what_lies_after_its_checkpoint_and_nothing_else(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", LONG, interrupted(data(LONG), 33), watch=10, save_every=25)
    log = folder_of(tmp_path / "run")
    (log / "step-000007.png").write_bytes(b"not of this run")
    (log / "step-999999.png").write_bytes(b"not of this run")
    (log / "run.json").unlink()  # as before there was one
    run(tmp_path / "run", LONG, watch=0, save_every=25)
    pictures = {path.name for path in log.glob("*.png")}
    assert pictures == {f"step-{step}.png" for step in ("000001", "000007", "000010", "000020", "999999")}
    assert steps(tmp_path / "run") == [1, 10, 20, 40, 45]


def test_a_resumed_run_beside_a_log_of_something_else_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", LONG, interrupted(data(LONG), 33), save_every=25)
    (folder_of(tmp_path / "run") / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\n')
    before = contents(tmp_path)
    with pytest.raises(
        InvalidInput, match=r"line 2 of .*log\.jsonl is b'.xff'; expected a log of pyflow's: move run\.log"
    ):
        run(tmp_path / "run", LONG, save_every=25)
    assert contents(tmp_path) == before
