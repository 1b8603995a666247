"""Processes that share each batch train what one process trains; an error in one of them ends them all."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from pyflow.training.distributed import join
from pyflow.training.settings import Options
from tiny import network
from tiny_runs import DROPOUT, MAP, PATIENCE, POOLED, RECIPE, data, exit_code, interrupted, run, started

from pyflow import checkpoint
from pyflow.errors import InvalidInput, NotFinite

BATCH = 16
SETTINGS = {
    "adamw": replace(RECIPE, batch=BATCH),
    "muon": replace(DROPOUT, batch=BATCH, optimizer="muon", network=replace(DROPOUT.network, dropout=0.0), steps=3),
    "accumulate": replace(RECIPE, batch=BATCH, accumulate=2, half_lives=(0.1, 0.3)),
    "masks": replace(DROPOUT, batch=BATCH, network=replace(DROPOUT.network, dropout=0.0, extra=2), flip=True),
    "learned weight": replace(MAP, batch=BATCH, options=Options(learned_weight=True, diagonal=0.5)),
    "pooled": replace(POOLED, accumulate=2),
}


def together(folder, processes: int, work, *arguments) -> list[int | None]:
    """Exit codes of this many processes that run `work(rank, folder, *arguments)` in one group."""
    children = [started(_member, rank, processes, folder, work, arguments) for rank in range(processes)]
    until = time.monotonic() + PATIENCE
    return [exit_code(child, max(0.0, until - time.monotonic())) for child in children]


def _member(rank: int, processes: int, folder, work, arguments) -> None:
    meeting = folder / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    dist.barrier()  # one that has ended already is one that the others cannot reach
    work(rank, folder, *arguments)
    dist.destroy_process_group()


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], kind: str = "net.") -> float:
    """The norm of the difference, relative to the norm, over all trained weights; or over all first moments."""
    a, b = (
        torch.cat([state[n].flatten() for n in sorted(state) if n.startswith(kind) or n.endswith(kind)]).double()
        for state in (first, second)
    )
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_what_one_does(tmp_path, rng, name):
    setting = replace(SETTINGS[name], seed=int(rng.integers(2**31)), steps=4, learning_rate=1e-3)
    seed = int(rng.integers(2**31))
    _trains(0, tmp_path, "one", setting, seed)
    assert together(tmp_path, 2, _trains, "two", setting, seed) == [0, 0]
    one, two = (checkpoint.load_state(tmp_path / folder) for folder in ("one", "two"))
    assert torch.equal(one["rng"], two["rng"])
    # Muon takes the direction of small singular values as seriously as that of large ones, in bfloat16; Adam moves a
    # bias before a norm of one channel a group, whose gradient is rounding alone, as far as any other weight.
    assert apart(one, two) < (5e-4 if name in ("muon", "masks") else 1e-6), setting.seed
    if name == "accumulate":
        assert checkpoint.is_checkpoint(tmp_path / "two" / "half-life-0.3")
    steps = [json.loads(line)["step"] for line in (tmp_path / "two.log" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 4]


def _trains(rank: int, folder, name: str, setting, seed: int) -> None:
    run(folder / name, setting, start=network(setting.network, seed))


def test_one_process_of_two_is_not_the_whole(tmp_path):
    """What the test above would miss if processes did not average: each half of the batch alone trains another net."""
    setting = replace(SETTINGS["adamw"], steps=4, learning_rate=1e-3)
    start, draw = network(setting.network, 1), data(setting)
    run(tmp_path / "one", setting, start=start)
    run(tmp_path / "half", setting, lambda count: draw(count).part(0, 2), start=start)
    one, half = (checkpoint.load_state(tmp_path / folder) for folder in ("one", "half"))
    assert apart(one, half) > 1e-3


def test_dropout_differs_between_processes_and_batches_do_not(tmp_path):
    assert together(tmp_path, 2, _draws) == [0, 0]
    (first, common), (second, same) = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first != second
    assert common == same


def _draws(rank: int, folder) -> None:
    torch.manual_seed(3)
    with join("cpu").own_chance(3, 0):
        inside = torch.rand(1).item()
    (folder / str(rank)).write_text(json.dumps([inside, torch.rand(1).item()]))


def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    assert together(tmp_path, 2, _is_poisoned) == [0, 0]
    assert not (tmp_path / "run").exists()


def _is_poisoned(rank: int, folder) -> None:
    draw = data(SETTINGS["adamw"])

    def poisoned(count: int):
        batch = draw(count)
        batch.image[1] = float("nan")  # the second process's
        return batch

    with pytest.raises(NotFinite, match="step 0: loss nan"):
        run(folder / "run", SETTINGS["adamw"], poisoned)


def test_an_error_in_one_process_does_not_leave_the_other_waiting(tmp_path):
    codes = together(tmp_path, 2, _the_second_is_interrupted)
    assert all(code not in (0, None) for code in codes), codes
    assert int(checkpoint.load_state(tmp_path / "run")["step"]) == 3


def _the_second_is_interrupted(rank: int, folder) -> None:
    setting = SETTINGS["adamw"]
    run(folder / "run", setting, interrupted(data(setting), 4) if rank == 1 else None)


def test_processes_that_see_other_folders_are_refused(tmp_path):
    setting = SETTINGS["adamw"]
    run(tmp_path / "run 0", replace(setting, half_lives=(0.2,)))
    assert together(tmp_path, 2, _has_a_folder_of_its_own) == [0, 0]


def _has_a_folder_of_its_own(rank: int, folder) -> None:
    with pytest.raises(InvalidInput, match="expected one folder that all processes see"):
        run(folder / f"run {rank}", replace(SETTINGS["adamw"], half_lives=(0.2,)))


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    assert together(tmp_path, 3, _is_one_of_three) == [0, 0, 0]


def _is_one_of_three(rank: int, folder) -> None:
    with pytest.raises(InvalidInput, match="batch is 16; expected a multiple of 3 processes times accumulate=1"):
        run(folder / "run", SETTINGS["adamw"])


def test_torchrun_on_the_command_line_trains_what_one_process_does(tmp_path):
    words = "train lsd --data checkerboard --network.width 16 --network.depth 2 --steps 5 --batch 64 --watch 4 "
    words += "--optimizer adamw --learning-rate 1e-3 --out"
    one = [sys.executable, "-m", "pyflow.cli", *words.split(), str(tmp_path / "one")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    two = [*torchrun, "pyflow.cli", *words.split(), str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command in (one, two):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
    states = [checkpoint.load_state(tmp_path / folder) for folder in ("one", "two")]
    assert apart(*states) < 1e-4
    assert checkpoint.load_spec(tmp_path / "one") == checkpoint.load_spec(tmp_path / "two")
    assert done.stdout.count("trained:") == 1, done.stdout
    assert (tmp_path / "two.log" / "step-000004.png").is_file()
