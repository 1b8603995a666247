"""How far the trajectories of a sampler are from straight lines, which is what reflow is to improve."""

from itertools import groupby
from typing import Any

import numpy as np

from . import native
from .core import Plan, Row, fused_step
from .engines.runner import LoopRunner
from .sampler import Flow
from .spec import extra_of


def straightness(
    flow: Flow, plan: Plan, count: int, *, label: np.ndarray | None = None, guidance: float = 1.0, seed: int = 0
) -> float | None:
    """The mean of integral |dx/dt - (x1 - x0)|^2 dt / |x1 - x0|^2 over pictures (Liu et al. 2023), 0 if straight.

    A trajectory is what the plan runs through, straight between the ends of its steps; so one of a single step is
    straight. None where there is no single trajectory, as noise is drawn anew, or where the engine does not show it.
    """
    if any(row.n for row in plan) or not isinstance(flow.runner, LoopRunner) or extra_of(flow.spec.network):
        return None
    states, times = _trajectory(flow, flow.runner.denoiser, plan, count, label, guidance, seed)
    moves = np.diff(states.reshape(len(states), count, -1).astype(np.float64), axis=0)
    spans = np.diff(times)
    along = (np.square(moves).sum(2) / spans[:, None]).sum(0) * spans.sum()
    return float((along / np.square(moves.sum(0)).sum(1) - 1).mean())


def _trajectory(
    flow: Flow, denoiser: native.Denoiser, plan: Plan, count: int, label: np.ndarray | None, guidance: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The states at the ends of the plan's steps, (steps + 1, count, *shape), and their times.

    The loop shows no states, so each row's prediction is asked for by itself, and the step is the reference's.
    """
    shape = flow.spec.network.shape
    x = native.normal(seed, 0, count, int(np.prod(shape)), 0).reshape(count, *shape)
    asked: dict[str, Any] = {"label": label, "guidance": guidance, "null_label": flow.spec.network.classes}
    states, times, previous = [x], [], None
    for _, rows in groupby(plan, key=lambda row: (row.ka, row.ks)):  # both rows of a step of heun's end at one time
        step = list(rows)
        times.append(step[0].s)
        for row in step:
            alone = Row(row.s, row.t, a=0.0, b=1.0, h=0.0, n=0.0, ka=row.ka, ks=row.ks)
            p = native.sample(denoiser, [alone], batch=count, noise0=x, **asked).states
            x, previous = fused_step(row, x=x, cond=p, previous=previous)
        states.append(x)
    return np.stack(states), np.array([*times, 1.0])
