"""A run that was interrupted anywhere, killed too, ends bit for bit where an uninterrupted one ends."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    PATIENCE,
    RECIPE,
    SETTINGS,
    Interrupted,
    data,
    exit_code,
    interrupted,
    killed_after,
    run,
    spec_of,
    started,
    whole,
)

from pyflow import artefact, checkpoint
from pyflow.errors import InvalidArtefact, InvalidInput


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, rng, setting):
    torch.manual_seed(int(rng.integers(2**31)))  # whatever the caller's generator says
    assert run(tmp_path / "whole", setting)
    expected = whole(tmp_path / "whole")
    for at in sorted({0, 1, 3, int(rng.integers(setting.steps))}):
        folder = tmp_path / f"stopped at {at}"
        with pytest.raises(Interrupted):
            run(folder, setting, interrupted(data(setting), at))
        with pytest.raises(Interrupted):  # and once more, two steps on
            run(folder, setting, interrupted(data(setting), 2))
        torch.manual_seed(int(rng.integers(2**31)))
        assert run(folder, setting, save_every=int(rng.integers(1, 9)))
        assert whole(folder) == expected, f"stopped at step {at}"
        assert (folder / checkpoint.WEIGHTS).read_bytes() == (tmp_path / "whole" / checkpoint.WEIGHTS).read_bytes()


@pytest.mark.parametrize("stranger", ["notes.txt", "half-life-0.3/notes.txt", "others/notes.txt", "empty"])
def test_what_a_save_would_delete_is_noticed_before_the_first_step(tmp_path, stranger):
    setting, folder = SETTINGS["half-lives"], tmp_path / "run"
    with pytest.raises(Interrupted):
        run(folder, setting, interrupted(data(setting), 5))
    path = folder / stranger
    if path.suffix:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    else:
        path.mkdir()
    with pytest.raises(InvalidInput, match=f"holds {stranger.partition('/')[0]}.*which a save would delete"):
        run(folder, setting, interrupted(data(setting), 0))
    assert path.exists()


def test_the_folder_where_the_command_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="is where this runs, and each save takes its place; expected a folder in"):
        run(Path())
    assert not list(tmp_path.iterdir())


def test_what_is_compared_is_all_that_a_run_leaves(tmp_path):
    run(tmp_path / "run", SETTINGS["learned weight"])
    names = whole(tmp_path / "run").keys()
    for part in ("net.enter.weight", "weight.leave.weight", "optimizer.0.0.exp_avg", "rng", "step", "./enter.weight"):
        assert part in names
    assert "half-life-0.2/enter.weight" in names
    run(tmp_path / "muon", SETTINGS["muon"])
    assert "optimizer.1.0.momentum_buffer" in whole(tmp_path / "muon")


@pytest.mark.parametrize("name", ["unet", "muon", "accumulate", "learned weight", "bfloat16", "pooled"])
def test_a_run_that_is_killed_at_random_times_goes_on_exactly(tmp_path, rng, name):
    """It saves at every step: about half of the time it is writing a checkpoint."""
    setting, folder = SETTINGS[name], tmp_path / "killed"
    assert exit_code(started(int)) == 0  # what processes are forked from has begun
    begun = time.monotonic()
    assert killed_after(PATIENCE, run, tmp_path / "whole", setting)
    took = time.monotonic() - begun
    kills = 0
    while kills < 30 and not killed_after(float(rng.uniform(0.1, 0.9)) * took, _saving, folder, setting):
        kills += 1
    run(folder, setting)
    assert kills, "the first run was not killed"
    assert whole(folder) == whole(tmp_path / "whole"), f"after {kills} kills"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["killed", "killed.log", "whole", "whole.log"], left


def _saving(folder, setting):
    run(folder, setting, save_every=1)


@pytest.mark.parametrize("call", ["_flush", "_exchange"])
def test_a_run_that_is_killed_in_the_middle_of_a_save_goes_on_exactly(tmp_path, rng, call):
    """Before and after some call of a save."""
    setting = SETTINGS["half-lives"]
    run(tmp_path / "whole", setting)
    expected = whole(tmp_path / "whole")
    calls = rng.choice(11, size=3, replace=False).tolist() if call == "_flush" else [0]  # 13 flushes a save
    for at in (number + 1 for number in calls):
        for before in (True, False):
            folder = tmp_path / f"{call} {at} {before}"
            run_to(folder, setting, 4)  # a checkpoint stands: what is killed is the save that replaces it
            assert exit_code(started(_killed_in_a_save, folder, setting, call, at, before)) == -signal.SIGKILL
            run(folder, setting)
            assert whole(folder) == expected, f"killed {'before' if before else 'after'} call {at} of {call}"


def _killed_in_a_save(folder, setting, call: str, at: int, before: bool) -> None:
    real, count = getattr(artefact, call), 0

    def deadly(*arguments):
        nonlocal count
        count += 1
        if count < at or not before:
            real(*arguments)
        if count >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(artefact, call, deadly)
    run(folder, setting)


def run_to(folder, setting, steps: int) -> None:
    with pytest.raises(Interrupted):
        run(folder, setting, interrupted(data(setting), steps))


def test_the_last_save_before_an_interruption_stands(tmp_path):
    run_to(tmp_path / "run", RECIPE, 2)
    assert not (tmp_path / "run").exists()
    for at, saved in ((4, 3), (4, 6), (0, 6)):
        run_to(tmp_path / "run", RECIPE, at)
        assert int(checkpoint.load_state(tmp_path / "run")["step"]) == saved


def test_a_finished_run_is_left_alone(tmp_path):
    assert run(tmp_path / "run") is True
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()}
    assert run(tmp_path / "run", draw=interrupted(data(RECIPE), 0)) is False
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()} == before


def test_a_copied_run_goes_on_like_the_original(tmp_path):
    run_to(tmp_path / "a", RECIPE, 5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert whole(tmp_path / "a") == whole(tmp_path / "b")


def test_a_checkpoint_that_cannot_be_continued_is_refused(tmp_path):
    run(tmp_path / "run")
    model, spec = checkpoint.load(tmp_path / "run")
    checkpoint.save(tmp_path / "weights only", model, spec)
    with pytest.raises(InvalidArtefact, match=r"holds no state\.safetensors"):
        run(tmp_path / "weights only")
    state = checkpoint.load_state(tmp_path / "run")
    for broken in (
        {k: v for k, v in state.items() if k != "rng"},
        {**state, "net.enter.weight": torch.zeros(1)},
        {**state, "optimizer.0.99.step": torch.zeros(())},
    ):
        checkpoint.save(tmp_path / "broken", model, spec, broken)
        with pytest.raises(InvalidArtefact, match="its training state does not fit this run"):
            run(tmp_path / "broken")
    checkpoint.save(tmp_path / "gpu", model, spec, {**state, "rng.cuda": torch.zeros(16, dtype=torch.uint8)})
    with pytest.raises(InvalidArtefact, match="trained on another device than cpu"):
        run(tmp_path / "gpu")


def test_each_average_is_a_checkpoint_that_loads(tmp_path):
    setting = SETTINGS["half-lives"]
    run(tmp_path / "run", setting)
    seen = []
    for place, half_life in (("", None), ("half-life-0.3", 0.3), ("half-life-0.0", 0.0)):
        model, spec = checkpoint.load(tmp_path / "run" / place)
        assert spec.provenance.pop("half_life", None) == half_life
        assert spec == spec_of(setting)
        seen.append(model.leave.weight.detach())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
