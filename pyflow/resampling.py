"""Resampling jumps for inpainting (Lugmayr et al. 2022, RePaint, alg. 1) as rows of a plan.

A stretch of the plan is passed several times, and before each further pass the state is noised back to where the
stretch begins: so what was generated meets what is kept again. A jump is no network call and no row of its own. It is
part of the row before it, whose terms it scales and whose noise it adds to.
"""

import math
from collections.abc import Sequence

from .core import Path, Plan, Row, ddim, ddpm, euler, renoise
from .errors import InvalidInput

SOLVERS = tuple(solver.__name__ for solver in (euler, ddim, ddpm, renoise))
"""Those whose rows are steps of their own, with no memory of the row before."""


def resampled(path: Path, plan: Plan, grid: Sequence[float], resamples: int, jump: int) -> Plan:
    """`plan`, a row for each interval of `grid`, with each stretch of `jump` steps passed `resamples` times.

    Stretches are counted from the end, as RePaint counts them. The first one is passed once: at its beginning there is
    only noise, which remembers nothing.
    """
    if len(plan) <= jump:
        raise InvalidInput(
            f"jump is {jump} of {len(plan)} steps; a jump to the very beginning forgets the picture: "
            f"expected more than {jump} steps, or resamples=1"
        )
    begun = len(plan) - jump * ((len(plan) - 1) // jump)
    rows = [*plan[:begun]]
    for end in range(begun + jump, len(plan) + 1, jump):
        *steps, last = plan[end - jump : end]
        rows += [*steps, jumped(path, last, grid[end], grid[end - jump])] * (resamples - 1) + [*steps, last]
    return Plan(rows)


def jumped(path: Path, row: Row, t: float, r: float) -> Row:
    """`row`, which leads to time t, and after it a jump back to time r: x_r = scale * x_t + fresh noise.

    Both noises are independent, so one draw stands for their sum.
    """
    scale = path.alpha(r) / path.alpha(t)
    added = path.sigma(r) ** 2 - (scale * path.sigma(t)) ** 2
    return row._replace(
        a=scale * row.a,
        b=scale * row.b,
        n=math.sqrt((scale * row.n) ** 2 + added),
        ka=float(path.alpha(r)),
        ks=float(path.sigma(r)),
    )
