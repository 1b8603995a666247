"""How real pictures and generated ones lie among each other's nearest neighbours: precision, recall, density, coverage.

Distances are computed a block of rows at a time, in the features' own precision. Their floor is 2 N M D operations and
reading both sets once a block: for 50,000 against 50,000 of 2048 features 1e13, while a block has 16 MB in float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .errors import InvalidInput
from .metrics import refuse_unlike_features

BALL, DENSITY_BALL = 3, 5  # neighbours that a ball holds: Kynkäänniemi et al. 2019, Naeem et al. 2020
BLOCK = 2**22  # distances at once


class Manifold(NamedTuple):
    """Shares of pictures in 0..1; density, a mean count, may exceed 1."""

    precision: float  # of the generated that lie in a ball around a real one
    recall: float  # of the real that lie in a ball around a generated one
    density: float  # balls around real ones that a generated one lies in, over the neighbours that each holds
    coverage: float  # of the real whose ball holds a generated one


def radii(features: np.ndarray, neighbours: tuple[int, ...] = (BALL, DENSITY_BALL)) -> np.ndarray:
    """(len(neighbours), N): the squared distance of each sample to its k-th nearest other one."""
    refuse_unlike_features("features", features)
    if len(features) <= max(neighbours):
        raise InvalidInput(
            f"features has shape {features.shape}; the {max(neighbours)} nearest neighbours of a sample need "
            f"{max(neighbours) + 1} samples or more"
        )
    found = np.empty((len(neighbours), len(features)), features.dtype)
    centred = features - features.mean(0)
    ranks = [k - 1 for k in neighbours]
    for rows, distances in _blocks(centred, centred):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        distances.partition(ranks, axis=1)
        found[:, rows] = distances[:, ranks].T
    return found


def manifold(real: np.ndarray, made: np.ndarray, real_radii: np.ndarray | None = None) -> Manifold:
    """All four of two sets of features (N, D); `real_radii` are `radii(real)`, where they are known already."""
    if real.ndim != 2 or real.shape[1:] != made.shape[1:]:
        raise InvalidInput(f"real has shape {real.shape}, made {made.shape}; expected (N, D) of the same features")
    ball, wide = radii(real) if real_radii is None else real_radii
    made_ball = radii(made)[0]
    middle = real.mean(0)  # small numbers: a float32 square of a distance is then that of the distance
    precise = np.empty(len(made), bool)
    recalled, covered, inside = np.zeros(len(real), bool), np.zeros(len(real), bool), 0
    for rows, distances in _blocks(made - middle, real - middle):
        precise[rows] = (distances <= ball).any(1)
        recalled |= (distances <= made_ball[rows, None]).any(0)
        near = distances <= wide
        covered |= near.any(0)
        inside += int(np.count_nonzero(near))
    return Manifold(
        float(precise.mean()), float(recalled.mean()), inside / (DENSITY_BALL * len(made)), float(covered.mean())
    )


def _blocks(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of `first`, and their squared distances to all of `second`: (-2x, |x|^2, 1).(y, 1, |y|^2), a product alone.

    A distance near zero may come out below it by a rounding.
    """
    ones = [np.ones((len(features), 1), features.dtype) for features in (first, second)]
    squares = [np.square(features).sum(1, keepdims=True) for features in (first, second)]
    longer = np.hstack([-2 * first, squares[0], ones[0]])
    others = np.ascontiguousarray(np.hstack([second, ones[1], squares[1]]).T)
    step = max(1, BLOCK // len(second))
    for start in range(0, len(first), step):
        rows = slice(start, min(start + step, len(first)))
        yield rows, longer[rows] @ others
