"""Quality of what is generated: the Fréchet distance of features, the share of labels that a classifier reads, and the
Kullback-Leibler divergence of points in the plane."""

import numpy as np

from .errors import InvalidInput


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of two sets of features (N, D), each seen as a Gaussian.

    The trace of (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2, which needs no complex square root.
    """
    for name, features in (("first", first), ("second", second)):
        if features.ndim != 2 or len(features) <= features.shape[1]:
            raise InvalidInput(
                f"{name} has shape {features.shape}; a covariance of D features needs more than D samples: (N > D, D)"
            )
        if not np.isfinite(features).all():
            raise InvalidInput(f"{name} holds a NaN or an infinity; expected finite features")
    if first.shape[1] != second.shape[1]:
        raise InvalidInput(f"first has {first.shape[1]} features, second {second.shape[1]}; expected the same")
    difference = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    a, b = (
        np.cov(features.astype(np.float64), rowvar=False).reshape(2 * features.shape[1:])
        for features in (first, second)
    )
    cross = np.linalg.svd(_root(a) @ _root(b), compute_uv=False).sum()
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def label_accuracy(read: np.ndarray, asked: np.ndarray) -> float:
    """The share of pictures that the classifier reads as the label that was asked for."""
    read, asked = np.asarray(read), np.asarray(asked)
    if read.shape != asked.shape or read.ndim != 1 or not len(read):
        raise InvalidInput(f"read has shape {read.shape}, asked {asked.shape}; expected one label a picture in both")
    return float((read == asked).mean())


def histogram_divergence(
    real: np.ndarray, made: np.ndarray, *, reach: float = 2.5, cells: int = 60, floor: float = 1e-8
) -> float:
    """KL(real||made) of two sets of points (N, 2), as histograms of cells x cells over -reach..reach.

    A cell's probability is its share of ALL points of a set, plus `floor`: points outside are missing inside.
    """
    for name, points in (("real", real), ("made", made)):
        if points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise InvalidInput(f"{name} has shape {points.shape}; expected points in the plane: (N, 2)")
        if not np.isfinite(points).all():
            raise InvalidInput(f"{name} holds a NaN or an infinity; expected finite points")
    edges = np.linspace(-reach, reach, cells + 1)
    p, q = (np.histogramdd(points, bins=(edges, edges))[0] / len(points) + floor for points in (real, made))
    return float((p * np.log(p / q)).sum())
