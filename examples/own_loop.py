"""A training loop of one's own: a one-step student of a teacher's pairs, with what pyflow.training has for it."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pyflow.training import pairs
from pyflow.training.averages import Average
from pyflow.training.batch import paired
from pyflow.training.objectives import OBJECTIVES
from pyflow.training.settings import Options

import pyflow
from pyflow import checkpoint
from pyflow.commands import make_pairs, train_teacher

STEPS = 500


def distil(teacher: Path, made: Path, student: Path) -> None:
    net, spec = checkpoint.load(teacher)
    average = Average(copy.deepcopy(net), half_life=0.05, steps=STEPS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    draw, options = paired(pairs.load(made)[0]), Options(times="u-shaped", jump=0.75)
    net.train()
    for step in range(STEPS):
        batch = draw(512)  # noise, label, picture, and the coins that the objective reads its times from
        loss = OBJECTIVES["reflow"].loss(net, spec, batch, options).each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.follow(net, step)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    checkpoint.save(student, average.model, replace(spec, provenance={"teacher": checkpoint.weights_sha256(teacher)}))


with tempfile.TemporaryDirectory() as folder:
    teacher, made, student = (Path(folder) / name for name in ("teacher", "pairs", "student"))
    train_teacher("cfm", "checkerboard", teacher, steps=400, batch=512, compile=False)
    make_pairs(teacher, made, count=8192, steps=16, guidance=1.0, seed=2**31)
    torch.manual_seed(0)
    distil(teacher, made, student)

    # Noise that no pair has: the same seed is the same noise, so the teacher's 16 steps are the truth point by point.
    truth = pyflow.load(teacher).sample(2000, steps=16, solver="ab2", seed=1).states
    error = {}
    for name, source in (("teacher", teacher), ("student", student)):
        one = pyflow.load(source).sample(2000, steps=1, seed=1).states
        error[name] = float(np.sqrt(np.mean((one - truth) ** 2)))
        print(f"{name} in one step: {error[name]:.3f} from the teacher in 16, root mean square")
    assert error["student"] < error["teacher"] / 3, "the student did not learn its teacher's map"
