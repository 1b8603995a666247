"""The mathematics of pyflow on one page: paths, predictions, grids, guidance, rows, `fused_step`, `sample`.

Time runs from t=0 (noise) to t=1 (data); a path says x_t = alpha(t)*image + sigma(t)*noise. Every sampler is a plan:
a list of rows, one row a network call. NumPy arrays and torch tensors both work here, and neither package is imported.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import InvalidInput

Array = Any  # a NumPy array or a torch tensor; where a time is meant, a float too

VELOCITY, IMAGE, NOISE, V = PREDICTIONS = ("velocity", "image", "noise", "v")


# ---- paths: x_t = alpha(t)*image + sigma(t)*noise
def _math_of(t: Array) -> Any:
    """The module whose cos, exp and sqrt fit `t`: math for a float, numpy or torch for their arrays."""
    return math if isinstance(t, (int, float)) else sys.modules[type(t).__module__.partition(".")[0]]


@dataclass(frozen=True)
class Path:
    """alpha and sigma with their time derivatives; `sigma` is zero at t=1, where the picture is finished."""

    name: str
    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    alpha_rate: Callable[[Array], Array]
    sigma_rate: Callable[[Array], Array]

    def mix(self, image: Array, noise: Array, t: Array) -> Array:
        """x_t, the state at time t."""
        return self.alpha(t) * image + self.sigma(t) * noise

    def velocity(self, image: Array, noise: Array, t: Array) -> Array:
        """dx_t/dt for this image and this noise."""
        return self.alpha_rate(t) * image + self.sigma_rate(t) * noise


def _variance_preserving(name: str, alpha: Callable[[Array], Array], alpha_rate: Callable[[Array], Array]) -> Path:
    def sigma(t: Array) -> Array:
        return _math_of(t).sqrt(1 - alpha(t) * alpha(t))

    return Path(name, alpha, sigma, alpha_rate, lambda t: -alpha(t) * alpha_rate(t) / sigma(t))


# Nichol & Dhariwal 2021, eq. 17. The angle stops a thousandth short of a right angle, so that alpha(0) > 0 and a
# prediction of the noise still tells the image.
_COSINE_OFFSET, _COSINE_REACH = 0.008, 0.999
_COSINE_RATE = math.pi / 2 * _COSINE_REACH / (1 + _COSINE_OFFSET)
_COSINE_END = math.pi / 2 * _COSINE_OFFSET / (1 + _COSINE_OFFSET)


def _cosine_alpha(t: Array) -> Array:
    return _math_of(t).cos(_COSINE_END + _COSINE_RATE * (1 - t)) / math.cos(_COSINE_END)


def _cosine_alpha_rate(t: Array) -> Array:
    return _COSINE_RATE * _math_of(t).sin(_COSINE_END + _COSINE_RATE * (1 - t)) / math.cos(_COSINE_END)


# Ho et al. 2020's betas, 1e-4 to 0.02 over 1000 steps, in the continuous limit of Song et al. 2021, eq. 33.
_BETA_DATA, _BETA_NOISE = 0.1, 20.0


def _linear_beta_alpha(t: Array) -> Array:
    return _math_of(t).exp(-(1 - t) * (0.5 * _BETA_DATA + 0.25 * (_BETA_NOISE - _BETA_DATA) * (1 - t)))


def _linear_beta_alpha_rate(t: Array) -> Array:
    return 0.5 * (_BETA_DATA + (_BETA_NOISE - _BETA_DATA) * (1 - t)) * _linear_beta_alpha(t)


LINEAR = Path("linear", lambda t: t, lambda t: 1 - t, lambda t: 1.0, lambda t: -1.0)
VP_COSINE = _variance_preserving("vp-cosine", _cosine_alpha, _cosine_alpha_rate)
VP_LINEAR = _variance_preserving("vp-linear", _linear_beta_alpha, _linear_beta_alpha_rate)
PATHS = {path.name: path for path in (LINEAR, VP_COSINE, VP_LINEAR)}


# ---- predictions: what a network says, as image and noise
class Split(NamedTuple):
    """image = image_x*x + image_p*p and noise = noise_x*x + noise_p*p, for a state x and a prediction p."""

    image_x: Array
    image_p: Array
    noise_x: Array
    noise_p: Array


def split(path: Path, prediction: str, t: Array) -> Split:
    """How the state and the prediction at time t tell the image and the noise."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    if prediction == IMAGE:
        return Split(0.0, 1.0, 1 / sigma, -alpha / sigma)
    if prediction == NOISE:
        if isinstance(alpha, float) and alpha == 0.0:
            raise InvalidInput(f"noise tells no image at t={t} on the {path.name} path; expected t above 0")
        return Split(1 / alpha, -sigma / alpha, 0.0, 1.0)
    if prediction in (VELOCITY, V):  # v is a velocity by the angle (Salimans & Ho 2022): it tells both always
        alpha_rate, sigma_rate = (-sigma, alpha) if prediction == V else (path.alpha_rate(t), path.sigma_rate(t))
        area = alpha_rate * sigma - alpha * sigma_rate
        return Split(-sigma_rate / area, sigma / area, alpha_rate / area, -alpha / area)
    raise InvalidInput(f"prediction is {prediction!r}; expected one of {', '.join(PREDICTIONS)}")


def target(path: Path, prediction: str, image: Array, noise: Array, t: Array) -> Array:
    """What a network with this prediction is trained to say at time t."""
    if prediction == VELOCITY:
        return path.velocity(image, noise, t)
    return {IMAGE: image, NOISE: noise, V: path.alpha(t) * noise - path.sigma(t) * image}[prediction]


# ---- grids: the times that a plan visits
def uniform_grid(steps: int) -> tuple[float, ...]:
    """steps+1 evenly spaced times from 0 to 1."""
    if steps < 1:
        raise InvalidInput(f"steps is {steps}; expected 1 or more")
    return tuple(i / steps for i in range(steps + 1))


def cosine_grid(steps: int) -> tuple[float, ...]:
    """Times that lie closest at both ends, where trajectories bend most."""
    return (0.0, *(0.5 - 0.5 * math.cos(math.pi * t) for t in uniform_grid(steps)[1:-1]), 1.0)


GRIDS = {"uniform": uniform_grid, "cosine": cosine_grid}


def _intervals(grid: Sequence[float]) -> list[tuple[float, float]]:
    times = [float(t) for t in grid]
    if len(times) < 2 or not times[0] >= 0.0 or times[-1] != 1.0 or not all(s < t for s, t in zip(times, times[1:])):
        raise InvalidInput(f"the grid is {times}; expected two or more rising times in 0..1 that end at 1")
    return list(zip(times, times[1:]))


# ---- rows and plans
class Row(NamedTuple):
    """One network call: p = net(x, s, t), y = a*x + b*p + h*p_prev + n*z, kept pixels = ka*image + ks*noise0."""

    s: float
    t: float
    a: float
    b: float
    h: float
    n: float
    ka: float
    ks: float


class Plan(tuple[Row, ...]):
    table: Any = None  # what native code made of the rows, kept here because they never change


def _row(path: Path, s: float, told: float, end: float, a: float, b: float, h: float = 0.0, n: float = 0.0) -> Row:
    return Row(s, told, a, b, h, n, float(path.alpha(end)), float(path.sigma(end)))


def _mixed(c: Split, alpha: float, sigma: float) -> tuple[float, float]:
    """alpha*image + sigma*noise = first*x + second*p."""
    return alpha * c.image_x + sigma * c.noise_x, alpha * c.image_p + sigma * c.noise_p


def _velocity_terms(path: Path, prediction: str, t: float) -> tuple[float, float]:
    """velocity = first*x + second*p at time t."""
    if prediction == VELOCITY:
        return 0.0, 1.0
    return _mixed(split(path, prediction, t), path.alpha_rate(t), path.sigma_rate(t))


def euler(path: Path, prediction: str, grid: Sequence[float]) -> Plan:
    """x_t = x_s + (t-s)*velocity: Euler for an instantaneous velocity, a jump for a flow map's average over s..t."""
    plan = []
    for s, t in _intervals(grid):
        x_term, p_term = _velocity_terms(path, prediction, s)
        plan.append(_row(path, s, t, t, a=1 + (t - s) * x_term, b=(t - s) * p_term))
    return Plan(plan)


def heun(path: Path, prediction: str, grid: Sequence[float]) -> Plan:
    """Two rows a step: an Euler jump to t, then the mean of the velocities at both ends (Karras et al. 2022, alg. 1).

    Except for a velocity on the linear path, the velocity has no limit at t=1: the last step is then one Euler row.
    """
    plan = []
    for s, t in _intervals(grid):
        x_term, p_term = _velocity_terms(path, prediction, s)
        grown = 1 + (t - s) * x_term
        plan.append(_row(path, s, s, t, a=grown, b=(t - s) * p_term))
        if t < 1.0 or (path is LINEAR and prediction == VELOCITY):
            x_after, p_after = _velocity_terms(path, prediction, t)
            back = (1 + (t - s) / 2 * x_term) / grown  # x + half the first velocity, told by the state after the jump
            a, b = back + (t - s) / 2 * x_after, (t - s) / 2 * p_after
            plan.append(_row(path, t, t, t, a, b, h=(t - s) * p_term * (0.5 - back)))
    return Plan(plan)


def ab2(path: Path, prediction: str, grid: Sequence[float]) -> Plan:
    """Adams-Bashforth 2: second order with one network call a step, the velocity before is remembered."""
    if prediction != VELOCITY:
        raise InvalidInput(f"prediction is {prediction!r}; ab2 expected {VELOCITY}: use ddim or heun instead")
    plan, before = [], 0.0
    for s, t in _intervals(grid):
        lean = (t - s) / (2 * before) if before else 0.0
        plan.append(_row(path, s, s, t, a=1.0, b=(t - s) * (1 + lean), h=-(t - s) * lean))
        before = t - s
    return Plan(plan)


def ddim(path: Path, prediction: str, grid: Sequence[float], eta: float = 0.0) -> Plan:
    """Song et al. 2021, eq. 12: split the state into image and noise, mix them anew at t, the NEXT kept time.

    eta is the share of DDPM's posterior deviation that is drawn afresh: 0 is deterministic.
    """
    if not 0.0 <= eta <= 1.0:
        raise InvalidInput(f"eta is {eta}; expected 0 (deterministic) to 1 (ancestral)")
    plan = []
    for s, t in _intervals(grid):
        c, alpha, sigma = split(path, prediction, s), path.alpha(t), path.sigma(t)
        share = min(1.0, path.alpha(s) / alpha * sigma / path.sigma(s))  # of the noise at t, what the state at s knows
        kept = sigma * math.sqrt(1 - eta * eta + (eta * share) ** 2)
        plan.append(_row(path, s, s, t, *_mixed(c, alpha, kept), n=eta * sigma * math.sqrt(1 - share * share)))
    return Plan(plan)


def ddpm(path: Path, prediction: str, grid: Sequence[float]) -> Plan:
    """Ancestral sampling of Ho et al. 2020, alg. 2, with the posterior's own deviation: DDIM at eta=1."""
    return ddim(path, prediction, grid, eta=1.0)


def renoise(path: Path, prediction: str, grid: Sequence[float]) -> Plan:
    """Consistency sampling (Song et al. 2023, alg. 1): jump to the image at t=1, then noise it anew to time t."""
    plan = []
    for s, t in _intervals(grid):
        a, b = _mixed(split(path, prediction, s), path.alpha(t), 0.0)
        plan.append(_row(path, s, 1.0, t, a, b, n=path.sigma(t)))
    return Plan(plan)


SOLVERS = {solver.__name__: solver for solver in (euler, heun, ab2, ddim, ddpm, renoise)}


# ---- the step and the loop: the truth for every backend
def fused_step(
    row: Row,
    *,
    x: Array,
    cond: Array,
    uncond: Array | None = None,
    guidance: float = 1.0,
    previous: Array | None = None,
    noise: Array | None = None,
    mask: Array | None = None,
    image: Array | None = None,
    noise0: Array | None = None,
) -> tuple[Array, Array]:
    """Guidance, update and mask of one row; returns the new state and the guided prediction (the next `previous`).

    An operand whose coefficient is zero is never read: it may be absent or uninitialised. In `mask`, 1 is generated
    and 0 is kept. Every backend computes these sums in this order, each product and sum rounded on its own.
    """
    p = cond if uncond is None else uncond + guidance * (cond - uncond)
    y = _weighted((row.a, x), (row.b, p), (row.h, previous), (row.n, noise))
    if mask is not None:
        y = mask * y + (1 - mask) * _weighted((row.ka, image), (row.ks, noise0))
    return y, p


def _weighted(*terms: tuple[float, Array]) -> Array:
    first, *others = [coefficient * operand for coefficient, operand in terms if coefficient != 0.0]
    return sum(others, start=first)


def sample(
    denoise: Callable[[Array, float, float, bool], Array],
    plan: Plan,
    noise: Callable[[int], Array],
    *,
    guidance: float = 1.0,
    mask: Array | None = None,
    image: Array | None = None,
) -> Array:
    """Run a plan. `denoise(x, s, t, labelled)` is the network; `noise(k)` is the picture's k-th noise, 0 at the start.

    Guidance 1 makes one call a row; any other value calls the network with and without its labels.
    """
    x = noise0 = noise(0)
    previous = None
    fixed = {"guidance": guidance, "mask": mask, "image": image, "noise0": noise0}
    for k, row in enumerate(plan, start=1):
        cond = denoise(x, row.s, row.t, True)
        uncond = denoise(x, row.s, row.t, False) if guidance != 1.0 else None
        fresh = noise(k) if row.n != 0.0 else None
        x, previous = fused_step(row, x=x, cond=cond, uncond=uncond, previous=previous, noise=fresh, **fixed)
    return x
