"""Streamed moments, kernel distance and neighbours against slow formulas, and against clean-fid's own functions."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest

from pyflow import neighbours
from pyflow.errors import InvalidInput
from pyflow.metrics import Moments, frechet_distance, interval, jackknife, kernel_distance
from pyflow.neighbours import BALL, DENSITY_BALL, manifold, radii


@pytest.fixture
def cleanfid(monkeypatch):
    """clean-fid's formulas. Its package reads pictures with torchvision, which they do not need."""
    pytest.importorskip("cleanfid", reason='needs pip install "pyflow-engine[fid]"')
    pytest.importorskip("scipy")
    readers = {"utils": (), "features": ("build_feature_extractor", "get_reference_statistics")}
    for name, functions in readers.items():
        module = ModuleType(f"cleanfid.{name}")
        vars(module).update(dict.fromkeys(functions))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "cleanfid.fid", raising=False)
    module = importlib.import_module("cleanfid.fid")
    yield module
    sys.modules.pop("cleanfid.fid", None)


def parts_of(features: np.ndarray, rng) -> list[np.ndarray]:
    return np.split(features, np.sort(rng.integers(len(features) + 1, size=6)))


# ---- moments
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_of_parts_are_those_of_the_whole(rng, offset):
    features = (rng.normal(size=(400, 9)) * rng.uniform(0.1, 3, 9) + offset).astype(np.float32)
    merged = Moments.of(features[:0])
    for part in parts_of(features, rng):  # some are empty, some of one sample
        merged = merged.merged(Moments.of(part))
    assert merged.count == 400
    np.testing.assert_allclose(merged.mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), np.cov(features.astype(np.float64), rowvar=False), atol=1e-9)
    other = rng.normal(size=(100, 9)) + offset
    assert frechet_distance(merged, Moments.of(other)) == pytest.approx(frechet_distance(features, other), rel=1e-9)


def test_moments_without_a_part_are_those_of_the_rest(rng):
    parts = [rng.normal(size=(count, 5)) * 3 + rng.normal(0, 100) for count in (1, 40, 7)]
    whole = Moments.of(np.concatenate(parts))
    for out in range(3):
        rest, expected = whole.without(Moments.of(parts[out])), np.concatenate([*parts[:out], *parts[out + 1 :]])
        assert rest.count == len(expected)
        np.testing.assert_allclose(rest.mean, expected.mean(0), rtol=1e-9)
        np.testing.assert_allclose(rest.covariance(), np.cov(expected, rowvar=False), rtol=1e-6, atol=1e-6)
    assert whole.without(Moments.of(parts[0][:0])).mean == pytest.approx(whole.mean)
    assert whole.without(whole).count == 0


def test_too_few_for_a_covariance_says_how_many(rng):
    few, enough = Moments.of(rng.normal(size=(48, 48))), Moments.of(rng.normal(size=(100, 48)))
    with pytest.raises(InvalidInput, match=r"second has shape \(48, 48\).*49 or more"):
        frechet_distance(enough, few)
    with pytest.raises(InvalidInput, match="48 features meet 3"):
        enough.merged(Moments.of(rng.normal(size=(5, 3))))


def test_frechet_is_that_of_clean_fid(rng, cleanfid):
    mixing = rng.normal(size=(2, 32, 32))
    first, second = (rng.normal(size=(300, 32)) @ mix + rng.normal(size=32) for mix in mixing)
    moments = [(features.mean(0), np.cov(features, rowvar=False)) for features in (first, second)]
    assert frechet_distance(first, second) == pytest.approx(
        cleanfid.frechet_distance(*moments[0], *moments[1]), rel=1e-6
    )


# ---- the interval of a class
def test_the_jackknife_of_a_mean_is_students_interval(rng):
    values = rng.normal(size=int(rng.integers(2, 9)))
    without = [np.delete(values, place).mean() for place in range(len(values))]
    assert jackknife(values.mean(), without) == pytest.approx(interval(values.tolist()))
    assert jackknife(0.5, []) == {"value": 0.5, "low": None, "high": None}


# ---- the kernel distance
def slow_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Over all of two sets, term by term."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    def within(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kernel_distance_is_the_slow_formula(rng):
    x, y = rng.normal(size=(23, 5)), rng.normal(size=(23, 5)) + 0.3
    assert kernel_distance(x, y, subsets=1) == pytest.approx(slow_kernel_distance(x, y), rel=1e-9, abs=1e-12)


def test_kernel_distance_is_that_of_clean_fid(rng, cleanfid, monkeypatch):
    """The same subsets: clean-fid draws them of numpy's global state, here of the generator that ours uses."""
    seed, size = int(rng.integers(2**31)), int(rng.integers(20, 60))
    first = rng.normal(size=(150, 12)).astype(np.float32)
    second = (rng.normal(size=(90, 12)) * 1.3 + 0.2).astype(np.float32)
    draw = np.random.default_rng(seed)
    monkeypatch.setattr(cleanfid.np.random, "choice", draw.choice)
    theirs = cleanfid.kernel_distance(
        first.astype(np.float64), second.astype(np.float64), num_subsets=7, max_subset_size=size
    )
    assert kernel_distance(first, second, subsets=7, size=size, seed=seed) == pytest.approx(theirs, rel=1e-6)


def test_kernel_distance_of_one_law_is_zero_in_the_mean(rng):
    """Unbiased: with the diagonals left in, it would be about 8 * 2 / 50 here."""
    found = [kernel_distance(*rng.normal(size=(2, 50, 8)), subsets=1) for _ in range(200)]
    assert abs(np.mean(found)) < 5 * np.std(found) / np.sqrt(len(found))


def test_kernel_distance_draws_by_its_seed(rng):
    x, y = rng.normal(size=(2, 200, 4))
    one, again, other = (kernel_distance(x, y, subsets=3, size=20, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_kernel_distance_refuses(rng):
    x = rng.normal(size=(20, 4))
    for bad, sentence in (
        (x[:1], "expected 1 or more of 2 or more"),
        (x[:, :3], "first has 4 features, second 3"),
        (np.where(x > 0, np.nan, x), "second holds a NaN"),
        (x[0], r"second has shape \(4,\)"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            kernel_distance(x, bad)


# ---- neighbours
def slow_manifold(real: np.ndarray, made: np.ndarray) -> tuple[float, ...]:
    def apart(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def ball(points, k):
        return np.sort(apart(points, points), axis=1)[:, k]  # the first is the point itself

    between = apart(real, made)
    precision = np.mean([(between[:, j] <= ball(real, BALL)).any() for j in range(len(made))])
    recall = np.mean([(between[i] <= ball(made, BALL)).any() for i in range(len(real))])
    near = between <= ball(real, DENSITY_BALL)[:, None]
    return precision, recall, near.sum() / DENSITY_BALL / len(made), near.any(1).mean()


@pytest.mark.parametrize("block", [7, 250, 2**22])
def test_manifold_is_the_slow_formula_in_blocks_of_any_size(rng, monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    real = rng.normal(size=(60, 4)) + 100
    made = rng.normal(size=(45, 4)) * rng.uniform(0.3, 2, 4) + 100.3
    np.testing.assert_allclose(manifold(real, made), slow_manifold(real, made), rtol=1e-12)
    assert manifold(real, made, radii(real)) == manifold(real, made)


def test_manifold_tells_what_is_wrong(rng):
    real = rng.normal(size=(300, 3))
    itself = manifold(real, real)
    assert itself[:2] == (1, 1)
    assert itself.coverage == 1
    far = manifold(real, rng.normal(size=(300, 3)) + 50)
    assert far == (0, 0, 0, 0)
    collapsed = manifold(real, real[:1] + 1e-3 * rng.normal(size=(300, 3)))
    assert collapsed.precision > 0.9
    assert collapsed.recall < 0.1
    assert collapsed.coverage < 0.1


def test_manifold_in_float32_is_that_in_float64(rng):
    real, made = (rng.normal(size=(400, 16)).astype(np.float32) + 30 for _ in range(2))
    exact = manifold(real.astype(np.float64), made.astype(np.float64))
    np.testing.assert_allclose(manifold(real, made), exact, atol=2 / 400)


def test_manifold_refuses(rng):
    real = rng.normal(size=(50, 4))
    with pytest.raises(InvalidInput, match="5 nearest neighbours of a sample need 6 samples or more"):
        manifold(real, real[:5])
    with pytest.raises(InvalidInput, match="NaN or an infinity"):
        manifold(real, np.full_like(real, np.nan))
    with pytest.raises(InvalidInput, match=r"made \(50, 3\); expected"):
        manifold(real, real[:, :3])
