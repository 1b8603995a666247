"""A solver of one's own is a function that returns rows; it runs on every backend as it is.

The midpoint method on a field whose flow is known, in C++ and in the reference loop.
"""

import math

import numpy as np

from pyflow import core, native


def midpoint(path: core.Path, prediction: str, grid: tuple[float, ...]) -> core.Plan:
    """Two rows a step: half an Euler step, then the whole step with the velocity found there."""
    plan = []
    for s, t in zip(grid, grid[1:]):
        half, middle = (t - s) / 2, (s + t) / 2
        plan.append(core.Row(s, s, 1.0, half, 0.0, 0.0, path.alpha(middle), path.sigma(middle)))
        # The state is x + half*p_prev now: take that back, then go the whole way.
        plan.append(core.Row(middle, middle, 1.0, t - s, -half, 0.0, path.alpha(t), path.sigma(t)))
    return core.Plan(plan)


def decay(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
    """dx/dt = -x, so that x(1) = x(0)/e."""
    np.negative(x, out=out)


start = np.ones((1, 2), np.float32)
for steps in (4, 8, 16):
    plan = midpoint(core.LINEAR, core.VELOCITY, core.uniform_grid(steps))
    came = native.sample(native.callable_denoiser(decay, (2,)), plan, batch=1, noise0=start).states
    reference = core.sample(lambda x, s, t, labelled: -x, plan, lambda row: start)
    assert np.array_equal(came, reference)
    print(f"{steps:3d} steps: error {abs(came[0, 0] - math.exp(-1)):.1e}")
