"""The smallest training runs, and ways to end them early."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from pyflow.training.batch import Batch, mask_bank, unpaired
from pyflow.training.settings import Options, Recipe
from pyflow.training.trainer import provenance, train
from tiny import UNET

from pyflow import checkpoint
from pyflow.spec import MLP, Spec

POINTS = MLP(shape=(2,), width=8, depth=2, classes=3)
RECIPE = Recipe("cfm", "cfm", "dots", POINTS, steps=12, batch=4, learning_rate=1e-2)
MAP = replace(RECIPE, objective="lsd", network=replace(POINTS, times=2), options=Options(learned_weight=True))
POOLED = replace(MAP, network=MLP(width=8, times=2), batch=16, options=Options(pooled=True, diagonal=0.5))
DROPOUT = replace(RECIPE, network=replace(UNET, dropout=0.2), steps=9, batch=2)
SETTINGS = {
    "points": RECIPE,
    "unet": DROPOUT,
    "masks": replace(DROPOUT, network=replace(UNET, extra=2), flip=True),
    "reflow": replace(RECIPE, name="reflow", objective="reflow", label_dropout=0.0),
    "muon": replace(DROPOUT, optimizer="muon", schedule="cosine"),
    "muon on points": replace(RECIPE, optimizer="muon", network=replace(POINTS, depth=3)),
    "accumulate": replace(RECIPE, accumulate=2, schedule="constant"),
    "half-lives": replace(RECIPE, half_lives=(0.1, 0.3, 0.0)),
    "learned weight": replace(MAP, half_lives=(0.1, 0.2)),
    "bfloat16": replace(DROPOUT, precision="bf16"),
    "bfloat16 along a direction": replace(MAP, precision="bf16"),
    "pooled": replace(POOLED, accumulate=2),
}


def spec_of(setting: Recipe) -> Spec:
    convention = setting.path, setting.prediction, setting.solver
    return Spec(setting.network, *convention, setting.network.classes > 0, provenance=provenance(setting))


def data(setting: Recipe):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, *setting.network.shape, generator=generator)
    masks = mask_bank(setting.network.shape, setting.seed) if setting.network.sees_mask else None
    return unpaired(images, torch.arange(32) % 3, setting.flip, masks, setting.options.masked)


def run(folder, setting=RECIPE, draw=None, **arguments) -> bool:
    arguments = {"save_every": 3, "watch": 0, **arguments}
    return train(setting, spec_of(setting), draw or data(setting), folder, **arguments)


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


def whole(folder: Path) -> dict[str, bytes]:
    """Weights of all averages, network, optimizers, learned weight, random state and step: all that a run leaves."""
    tensors = checkpoint.load_state(folder)
    for place in (folder, *sorted(folder.glob("half-life-*"))):
        weights = checkpoint.load_arrays(place, checkpoint.SPEC, checkpoint.WEIGHTS)
        tensors |= {f"{place.relative_to(folder)}/{name}": value for name, value in weights.items()}
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}


# Not a fork of this process: its other threads may hold a lock, and the copy would wait for ever.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tiny_runs", "pytest", "torch._dynamo"])
PATIENCE = 120.0


def started(function, *arguments):
    """A process of its own that runs this function of a module; quick, as torch is imported already."""
    process = PROCESSES.Process(target=_with_one_thread, args=(function, *arguments))
    process.start()
    return process


def _with_one_thread(function, *arguments) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def exit_code(process, seconds: float = PATIENCE) -> int | None:
    """None of a process that had to be killed after so many seconds."""
    process.join(seconds)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def killed_after(seconds: float, function, *arguments) -> bool:
    """Whether the process ended before that; else it died as by kill -9, wherever it was."""
    code = exit_code(started(function, *arguments), seconds)
    assert code in (0, None), code
    return code == 0


MORTAL = """
import os, signal
from pyflow import artefact
real, left = os.replace, {at}
def replace(a, b):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(a, b)
os.replace = replace
"""


def killed_at_rename(at: int, code: str, *arguments: str) -> bool:
    """Run `code` in a process of its own that is killed before it renames its file number `at`; whether it was."""
    command = [sys.executable, "-c", MORTAL.format(at=at) + code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
