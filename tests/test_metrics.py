"""The Fréchet distance against its closed form and against the formula with a matrix root; label accuracy."""

import numpy as np
import pytest

from pyflow.errors import InvalidInput
from pyflow.metrics import frechet_distance, label_accuracy


def with_moments(rng, count: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Samples whose mean and covariance are exactly these."""
    drawn = rng.normal(size=(count, len(mean)))
    drawn -= drawn.mean(0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False).reshape(len(mean), -1))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def covariance(rng, size: int) -> np.ndarray:
    root = rng.normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


@pytest.mark.parametrize("size", [1, 2, 16, 48])
def test_equals_the_formula_with_a_matrix_root(rng, size):
    linalg = pytest.importorskip("scipy.linalg")
    means, covariances = rng.normal(size=(2, size)), [covariance(rng, size) for _ in range(2)]
    sets = [with_moments(rng, 3 * size + 5, *moments) for moments in zip(means, covariances)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*sets[::-1]) == pytest.approx(expected, rel=1e-6)


def test_closed_form_of_axis_aligned_gaussians(rng):
    """With diagonal covariances: the squared distance of the means plus that of the deviations."""
    means, deviations = rng.normal(size=(2, 8)), rng.uniform(0.1, 3, size=(2, 8))
    sets = [with_moments(rng, 50, m, np.diag(d**2)) for m, d in zip(means, deviations)]
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself(rng):
    for features in (rng.normal(size=(200, 48)), rng.normal(size=(200, 48)).astype(np.float32) * 10):
        assert abs(frechet_distance(features, features)) <= 1e-6
        assert abs(frechet_distance(features, rng.permutation(features))) <= 1e-6


def test_a_feature_that_never_fires_is_no_trouble(rng):
    """Dead features make the covariances singular; the distance is that of the others."""
    first, second = rng.normal(size=(2, 100, 6))
    dead = np.zeros((100, 3))
    came = frechet_distance(np.hstack([first, dead]), np.hstack([second, dead]))
    assert came == pytest.approx(frechet_distance(first, second), rel=1e-6)
    assert np.isfinite(frechet_distance(np.ones((10, 3)), np.ones((10, 3))))


def test_a_shift_adds_its_square(rng):
    features, shift = rng.normal(size=(300, 10)), rng.normal(size=10)
    assert frechet_distance(features, features + shift) == pytest.approx((shift**2).sum(), rel=1e-6)


@pytest.mark.parametrize("shape", [(48, 48), (1, 1), (0, 4), (3, 10), (10,), (5, 2, 1)], ids=str)
def test_too_few_samples_and_other_shapes_are_refused(rng, shape):
    enough = rng.normal(size=(100, 4))
    for pair in ((rng.normal(size=shape), enough), (enough, rng.normal(size=shape))):
        with pytest.raises(InvalidInput, match=r"has shape \(.*; a covariance of D features needs more than D samples"):
            frechet_distance(*pair)


def test_sets_of_different_features_are_refused(rng):
    with pytest.raises(InvalidInput, match="features"):
        frechet_distance(rng.normal(size=(50, 4)), rng.normal(size=(50, 5)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nan_is_refused(rng, bad):
    features, other = rng.normal(size=(2, 50, 4))
    features[int(rng.integers(50)), int(rng.integers(4))] = bad
    with pytest.raises(InvalidInput, match="first holds a NaN or an infinity"):
        frechet_distance(features, other)
    with pytest.raises(InvalidInput, match="second holds a NaN or an infinity"):
        frechet_distance(other, features)


def test_label_accuracy(rng):
    asked = rng.integers(10, size=100)
    read = asked.copy()
    read[:25] = (read[:25] + 1) % 10
    assert label_accuracy(read, asked) == 0.75
    assert label_accuracy(asked, asked) == 1.0
    for wrong in (asked[:50], asked[:, None], asked[:0]):
        with pytest.raises(InvalidInput, match="expected one label a picture"):
            label_accuracy(wrong, asked)
    with pytest.raises(InvalidInput):
        label_accuracy(asked[:0], asked[:0])
