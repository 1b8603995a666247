"""Closed forms for data whose every conditional mean is known: the truth that solvers, engines and kernels are held to.

A law gives E[image | x_t] and E[noise | x_t] on any path, the velocity of the probability flow made of them, and the
flow map x_s -> x_t without a solver. Elements are independent, so arrays of any shape work. NumPy float64 throughout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyflow.core import IMAGE, NOISE, VELOCITY, Path, V

Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[float])


class Law:
    """What follows from E[image | x_t] and from the flow map, whatever the data."""

    def image(self, path: Path, x: Array, t: float) -> Array:
        """E[image | x_t = x]."""
        raise NotImplementedError

    def noise(self, path: Path, x: Array, t: float) -> Array:
        """E[noise | x_t = x]."""
        raise NotImplementedError

    def flow(self, path: Path, x: Array, s: float, t: float) -> Array:
        """The state at t of the probability flow that passes x at s, exactly."""
        raise NotImplementedError

    def velocity(self, path: Path, x: Array, t: float) -> Array:
        """dx/dt of the probability flow: alpha_rate * E[image | x] + sigma_rate * E[noise | x]."""
        return path.alpha_rate(t) * self.image(path, x, t) + path.sigma_rate(t) * self.noise(path, x, t)

    def v(self, path: Path, x: Array, t: float) -> Array:
        """E[alpha*noise - sigma*image | x_t = x]."""
        return path.alpha(t) * self.noise(path, x, t) - path.sigma(t) * self.image(path, x, t)

    def average_velocity(self, path: Path, x: Array, s: float, t: float) -> Array:
        """What a perfect flow map (MeanFlow, shortcut, Lines) says: the mean velocity over s..t along the flow."""
        return self.velocity(path, x, s) if s == t else (self.flow(path, x, s, t) - x) / (t - s)

    def says(self, prediction: str) -> Callable:
        """What a perfect network of this prediction says, of a path, a state and its time."""
        return {VELOCITY: self.velocity, IMAGE: self.image, NOISE: self.noise, V: self.v}[prediction]

    def denoiser(self, path: Path, prediction: str) -> Callable:
        """A perfect network of this prediction, as `core.sample` calls it; the second time and the label are unused."""
        says = self.says(prediction)
        return lambda x, s, t, labelled: says(path, x, s)

    def flow_map(self, path: Path) -> Callable:
        """A perfect two-time network, as `core.sample` calls it: the average velocity over s..t."""
        return lambda x, s, t, labelled: self.average_velocity(path, x, s, t)

    def consistency(self, path: Path) -> Callable:
        """A perfect consistency function, as `core.sample` calls it: the image where the flow through x ends."""
        return lambda x, s, t, labelled: self.flow(path, x, s, t)


@dataclass(frozen=True)
class Gaussian(Law):
    """image ~ N(mean, deviation**2), element by element; deviation 0 is a point mass, one known picture."""

    mean: Array | float
    deviation: Array | float

    def variance_at(self, path: Path, t: float) -> Array:
        """Var[x_t]."""
        return (path.alpha(t) * self.deviation) ** 2 + path.sigma(t) ** 2

    def image(self, path: Path, x: Array, t: float) -> Array:
        gain = path.alpha(t) * np.square(self.deviation) / self.variance_at(path, t)
        return self.mean + gain * (x - path.alpha(t) * self.mean)

    def noise(self, path: Path, x: Array, t: float) -> Array:
        return path.sigma(t) / self.variance_at(path, t) * (x - path.alpha(t) * self.mean)

    def flow(self, path: Path, x: Array, s: float, t: float) -> Array:
        # The velocity is affine in x, so the flow keeps every state at its distance from the mean in deviations.
        stretch = np.sqrt(self.variance_at(path, t) / self.variance_at(path, s))
        return path.alpha(t) * self.mean + stretch * (x - path.alpha(s) * self.mean)

    def draw(self, rng: np.random.Generator, size: int) -> Array:
        return self.mean + self.deviation * rng.standard_normal(size)


@dataclass(frozen=True)
class Mixture(Law):
    """Each element from its own draw of a one-dimensional Gaussian mixture."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.dot(self.weights, self.means))

    @property
    def variance(self) -> float:
        return float(np.dot(self.weights, np.square(self.means) + np.square(self.deviations))) - self.mean**2

    def _parts(self, path: Path, x: Array, t: float) -> list[tuple[float, Gaussian, Array]]:
        """Each component with its weight and its standard score of x."""
        laws = [Gaussian(m, d) for m, d in zip(self.means, self.deviations)]
        return [
            (w, g, (x - path.alpha(t) * g.mean) / np.sqrt(g.variance_at(path, t))) for w, g in zip(self.weights, laws)
        ]

    def _expected(self, path: Path, x: Array, t: float, told: Callable[[Gaussian], Array]) -> Array:
        parts = self._parts(path, x, t)
        logs = np.stack([np.log(w) - z * z / 2 - np.log(g.variance_at(path, t)) / 2 for w, g, z in parts])
        share = np.exp(logs - logs.max(axis=0))
        return sum(p * told(g) for p, (_, g, _) in zip(share / share.sum(axis=0), parts))

    def image(self, path: Path, x: Array, t: float) -> Array:
        return self._expected(path, x, t, lambda g: g.image(path, x, t))

    def noise(self, path: Path, x: Array, t: float) -> Array:
        return self._expected(path, x, t, lambda g: g.noise(path, x, t))

    def cumulative(self, path: Path, x: Array, t: float) -> Array:
        """P[x_t <= x]."""
        return sum(w * (1 + _erf(z / math.sqrt(2))) / 2 for w, _, z in self._parts(path, x, t))

    def flow(self, path: Path, x: Array, s: float, t: float) -> Array:
        # In one dimension trajectories do not cross, so the flow carries each quantile to itself: x_t = F_t^-1(F_s(x)).
        wanted = self.cumulative(path, x, s)
        edge = 10 + np.max(np.abs(x)) + max(map(abs, self.means))
        low, high = np.full(np.shape(x), -edge), np.full(np.shape(x), edge)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.cumulative(path, middle, t) > wanted
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return (low + high) / 2

    def draw(self, rng: np.random.Generator, size: int) -> Array:
        part = rng.choice(len(self.weights), size, p=self.weights)
        return np.take(self.means, part) + np.take(self.deviations, part) * rng.standard_normal(size)
