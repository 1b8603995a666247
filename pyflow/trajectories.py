"""How far the trajectories of a sampler are from straight lines, which is what reflow is to improve."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np

from . import native
from .core import Plan, Row, fused_step
from .engines.runner import LoopRunner
from .sampler import Flow
from .spec import extra_of


def no_trajectory(flow: Flow, plan: Plan) -> str:
    """Why there is none to follow; empty where there is one."""
    if any(row.n for row in plan):
        return "noise is drawn anew on the way, so that a picture has no single trajectory"
    if not isinstance(flow.runner, LoopRunner):
        return "this engine runs whole steps or plans, and shows no prediction by itself"
    if extra_of(flow.spec.network):
        return "the network is told what is kept of a picture, and here nothing is"
    return ""


def straightness(
    flow: Flow, plan: Plan, count: int, *, label: np.ndarray | None = None, guidance: float = 1.0, seed: int = 0
) -> float | None:
    """The mean of integral |dx/dt - (x1 - x0)|^2 dt / |x1 - x0|^2 over pictures (Liu et al. 2023), 0 if straight.

    A trajectory is what the plan runs through, straight between the ends of its steps; so one of a single step is
    straight. None where `no_trajectory` tells why.
    """
    if no_trajectory(flow, plan) or not isinstance(flow.runner, LoopRunner):
        return None
    states = _trajectory(flow, flow.runner.denoiser, plan, count, label, guidance, seed)
    began, start = next(states)
    time, state, along = began, start, np.zeros(count)
    for ended, reached in states:
        along += _squares(reached - state) / (ended - time)
        time, state = ended, reached
    return float((along * (time - began) / _squares(state - start) - 1).mean())


def _squares(moved: np.ndarray) -> np.ndarray:
    """|moved|^2 of each picture."""
    return np.asarray(np.square(moved.reshape(len(moved), -1), dtype=np.float64).sum(1))


def _trajectory(
    flow: Flow, denoiser: native.Denoiser, plan: Plan, count: int, label: np.ndarray | None, guidance: float, seed: int
) -> Iterator[tuple[float, np.ndarray]]:
    """The time and the states (count, *shape) at the start, and at the end of each step of the plan.

    The loop shows no states, so each row's prediction is asked for by itself, and the step is the reference's.
    """
    shape = flow.spec.network.shape
    x = native.normal(seed, 0, count, int(np.prod(shape)), 0).reshape(count, *shape)
    asked: dict[str, Any] = {"label": label, "guidance": guidance, "null_label": flow.spec.network.classes}
    previous = None
    for _, step in groupby(plan, key=lambda row: (row.ka, row.ks)):  # both rows of a step of heun's end at one time
        for place, row in enumerate(step):
            if place == 0:
                yield row.s, x
            alone = Row(row.s, row.t, a=0.0, b=1.0, h=0.0, n=0.0, ka=row.ka, ks=row.ks)
            p = native.sample(denoiser, [alone], batch=count, noise0=x, **asked).states
            x, previous = fused_step(row, x=x, cond=p, previous=previous)
    yield 1.0, x
