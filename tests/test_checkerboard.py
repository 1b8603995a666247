"""The checkerboard table: its judge against a law that is known, its shortest version from end to end."""

import json
import math
import re
import sys

import numpy as np
import pytest
from PIL import Image
from pyflow.training.data import checkerboard_points

from pyflow import checkerboard
from pyflow.errors import InvalidInput
from pyflow.metrics import histogram_divergence
from pyflow.studies import STUDIES

QUICK = {"steps": 60, "batch": 128, "compile": False}


def test_the_divergence_of_shares_that_are_known(rng):
    """Squares of one cell each: p puts a share in the first and q another one."""
    count = 10_000
    (few, many), first, second = rng.integers(2000, 8000, 2), np.array([0.04, 0.04]), np.array([1.04, -2.04])

    def points(of_first: int) -> np.ndarray:
        return np.where(np.arange(count)[:, None] < of_first, first, second)

    p, q = few / count, many / count
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert histogram_divergence(points(few), points(many)) == pytest.approx(expected, abs=1e-6)


def test_points_outside_are_missing_inside(rng):
    inside = rng.uniform(-2.5, 2.5, (40_000, 2))
    outside = np.concatenate([inside, np.full((40_000, 2), 3.0)])
    assert histogram_divergence(inside, outside) == pytest.approx(math.log(2), abs=1e-3)


def test_a_cell_that_nothing_reaches_costs_the_floor(rng):
    share = rng.uniform(0.2, 0.8)
    real, made = np.array([[0.04, 0.04], [1.04, 1.04]]), np.array([[0.04, 0.04]])
    floor = share * 1e-6
    expected = 0.5 * math.log(0.5) + 0.5 * math.log(0.5 / floor)
    assert histogram_divergence(real, made, floor=floor) == pytest.approx(expected, rel=1e-3)


def test_two_sets_of_the_law_are_as_far_apart_as_chance_has_them(rng):
    """K cells of N points each side: K/N to first order in the noise of both sets, here 1152/100,000."""
    real, other = (checkerboard.law(100_000, int(seed)) for seed in rng.integers(0, 2**31, 2))
    assert 0.0105 < histogram_divergence(real, other) < 0.0135


def test_the_cells_are_those_of_the_law():
    """A histogram's edges that missed the cells' would tell a half-filled column from an empty one."""
    half = checkerboard_points(200_000).numpy()
    assert histogram_divergence(half, half[np.abs(half).max(1) < 2]) == 0
    empty = np.abs(np.histogram2d(*half.T, bins=60, range=[[-2.5, 2.5]] * 2)[0] > 0).mean()
    assert empty == 8 * 12 * 12 / 3600


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (np.zeros((3, 3)), "made has shape (3, 3); expected points in the plane: (N, 2)"),
        (np.zeros((0, 2)), "made has shape (0, 2)"),
        (np.full((3, 2), np.nan), "made holds a NaN or an infinity"),
    ],
)
def test_what_is_no_set_of_points_is_refused(made, expected):
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        histogram_divergence(np.zeros((3, 2)), made)


@pytest.mark.parametrize("command", [*(("report", study) for study in STUDIES), ("demo",)], ids=" ".join)
def test_what_draws_is_refused_before_its_hours_of_training(command, clean_refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "charts need matplotlib (" in clean_refusal(*command)


@pytest.mark.slow
def test_the_shortest_version_has_every_method(tmp_path, monkeypatch):
    monkeypatch.setattr(checkerboard, "CALL", 700)
    monkeypatch.setattr(checkerboard, "PAIRS_A_POINT", 1)
    found = checkerboard.run(tmp_path / "runs", tmp_path / "report", points=1500, **QUICK)
    assert set(found.divergence) == set(checkerboard.METHODS)
    assert np.isfinite([*found.divergence.values()]).all()
    # Nothing is nearer to the law than the law, and even this early an instantaneous velocity needs its steps.
    assert 0 < found.floor < min(min(row) for row in found.divergence.values())
    assert found.divergence["cfm"][-1] < found.divergence["cfm"][0]

    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert {name: tuple(row) for name, row in results["divergence"].items()} == found.divergence
    assert results["recipes"]["lsd"]["steps"] == QUICK["steps"]
    assert np.asarray(Image.open(tmp_path / "report" / "scatter.png")).std() > 0
    shown = (tmp_path / "report" / "index.html").read_text()
    assert f"{found.divergence['lsd'][0]:.4f}" in shown
    assert "://" not in shown  # base64 holds no colon
    assert str(found).count("\n") == len(checkerboard.METHODS) + 3

    before = {name: (tmp_path / "runs" / name / "weights.safetensors").stat().st_mtime_ns for name in ("lsd", "lines")}
    again = checkerboard.run(tmp_path / "runs", tmp_path / "report", points=1500, **QUICK)
    assert again == found, "a second run of finished trainings told other figures"
    for name, when in before.items():
        assert (tmp_path / "runs" / name / "weights.safetensors").stat().st_mtime_ns == when, (
            f"{name} was trained again"
        )
