"""The Lines study: its six results from nothing, at the smallest size, and a second run that reuses them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from markup import Page
from PIL import Image

from pyflow import commands, lines, lines_page, quality
from pyflow.cli import main
from pyflow.errors import InvalidInput
from pyflow.lines_page import LINES, MOMENTS, NAIVE, SHOWN, STATE, TEACHER, Found, Measure, Setting


@pytest.fixture
def found(rng) -> Found:
    plans = lines._plans(Setting(ddim=20))
    measures = [Measure(name, n, 1.5 * n, 2.0 * n, 20 / n, 0.1 / n, 3.0 / n, 0.9) for name, n, _ in plans]
    shape = (4, len(MOMENTS), 8, 8, 1)
    return Found(
        Setting(data="a <folder>", ddim=20),
        measures,
        {name: {t: 0.1 + t / 10 for t in lines.TIMES} for name in (LINES, NAIVE)},
        {(m.method, m.steps): rng.integers(0, 256, (SHOWN, 8, 8, 1), np.uint8) for m in measures},
        {name: rng.integers(0, 256, shape, np.uint8) for name in (STATE, LINES, NAIVE)},
        0.1,
        "How.",
        {"commit": "abc"},
    )


def cell(sheet: np.ndarray, scale: int, row: int, column: int) -> np.ndarray:
    top, left = ((1 + 9 * place) * scale for place in (row, column))
    return sheet[top : top + 8 * scale : scale, left : left + 8 * scale : scale]


def test_the_page_holds_the_six_results(found, tmp_path):
    lines_page.write(found, tmp_path / "report")
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert page.words["h2"][:6] == [
        "1. Speed",
        "2. The same noise",
        "3. Along the line",
        "4. Held-out error",
        "5. 64 samples, uncurated",
        "6. Lines, naive, teacher",
    ]
    assert page.words["h1"] == ["The Lines study: a <folder>"]
    assert len(page.pictures) == 5
    assert page.counts["svg"] == 2, "the plot, for a desktop and for a phone"
    assert len(page.lines) == 1 + len(found.measures)
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["measures"] == [dataclasses.asdict(measure) for measure in found.measures]
    assert results["held_out_along_the_line"][NAIVE]["0.5"] == pytest.approx(0.15)
    assert results["setting"]["ddim"] == 20


def test_each_picture_stands_in_its_row_and_column(found, tmp_path):
    lines_page.write(found, tmp_path / "report")
    sheets = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "report").glob("*.png")}
    for row, plan in enumerate([(TEACHER, 20), (LINES, 4), (LINES, 2), (LINES, 1), (NAIVE, 1)]):
        for column in range(10):
            assert np.array_equal(cell(sheets["compare"], 10, row, column), found.pictures[plan][column, :, :, 0])
    for row, plan in enumerate([(LINES, 1), (NAIVE, 1), (TEACHER, 20)]):
        assert np.array_equal(cell(sheets["three-rows"], 10, row, 3), found.pictures[plan][13, :, :, 0])
    for index in range(SHOWN):
        came = cell(sheets["samples-4-steps"], 8, *divmod(index, 8))
        assert np.array_equal(came, found.pictures[LINES, 4][index, :, :, 0])
    for point in range(4):
        for row, name in enumerate((STATE, LINES, NAIVE)):
            for column in range(len(MOMENTS)):
                came = cell(sheets["trajectory"], 14, 3 * point + row, column)
                assert np.array_equal(came, found.trajectory[name][point, column, :, :, 0])


class Halfway(torch.nn.Module):
    """Tells the state itself, and remembers the times."""

    def __init__(self) -> None:
        super().__init__()
        self.times = []

    def forward(self, x, s, t, label):
        self.times.append((float(s[0]), float(t[0])))
        return x


def test_the_error_along_the_line_is_that_of_what_is_told_there(rng):
    """A network that tells the state is off by (1-t)(noise - image)."""
    seed = int(rng.integers(2**31))
    generator = torch.Generator().manual_seed(seed)
    noise, images = (torch.randn(300, 1, 4, 4, generator=generator) for _ in range(2))
    net = Halfway()
    curve = lines._along(net, (noise, torch.zeros(300, dtype=torch.int64), images))
    apart = (noise - images).square().mean().item()
    for t, error in curve.items():
        assert error == pytest.approx((1 - t) ** 2 * apart, abs=1e-6), f"t {t}, seed {seed}"
    assert all(s == t for s, t in net.times)
    assert sorted({t for _, t in net.times}) == pytest.approx(lines.TIMES)


def test_the_trajectory_is_of_the_pictures_that_are_told(rng):
    noise, images = (torch.from_numpy(rng.standard_normal((6, 3, 8, 4)).astype(np.float32)) for _ in range(2))
    held_out = noise, torch.zeros(6, dtype=torch.int64), images
    told = lines._trajectory({LINES: Halfway(), NAIVE: Halfway()}, held_out)
    assert {name: pictures.shape for name, pictures in told.items()} == dict.fromkeys(
        (LINES, NAIVE, STATE), (lines.TRAJECTORIES, len(MOMENTS), 8, 4, 3)
    )
    for index, t in enumerate(MOMENTS):
        states = t * images + (1 - t) * noise
        expected = (states[: lines.TRAJECTORIES].clamp(-1, 1).double() + 1).numpy() * 127.5
        for pictures in told.values():
            assert np.abs(pictures[:, index] - expected.transpose(0, 2, 3, 1)).max() < 0.501


@pytest.mark.parametrize(
    "words",
    ["--guidance nan", "--guidance 101", "--size 9m", "--size 5m", "--ddim 20000", "--held-out 99999", "--steps 0"],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(words, tmp_path, capsys):
    assert main(["report", "lines", "--out", str(tmp_path / "run"), *words.split()]) == 2
    name = words.split()[0].strip("-").replace("-", "_")
    assert f"{name} is " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("pairs", 0), ("held_out", 63), ("ddim", 4), ("guidance", -1.0), ("guidance", float("nan"))]
)
def test_a_study_too_small_is_refused(name, value):
    with pytest.raises(InvalidInput, match=f"{name} is {value}; expected "):
        Setting(**{name: value})


def test_points_are_refused(tmp_path, capsys):
    assert main(["report", "lines", "--data", "checkerboard", "--out", str(tmp_path / "run")]) == 2
    assert "data is 'checkerboard', points; this study expected pictures" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_study_from_nothing_and_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "PICTURES", 100)
    commands.train_judge(tmp_path / "run" / "classifier", "digits", steps=20)
    words = ["--pairs", "64", "--held-out", "64", "--ddim", "6", "--steps", "30", "--batch", "16"]
    command = ["report", "lines", *words, "--out", str(tmp_path / "run"), "--report", str(tmp_path / "report")]
    assert main(command) == 0
    told = capsys.readouterr().out
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [(m["method"], m["steps"]) for m in results["measures"]] == [
        (name, n)
        for name, all_steps in ((TEACHER, (6, 4, 2, 1)), (LINES, (4, 2, 1)), (NAIVE, (4, 2, 1)))
        for n in all_steps
    ]
    by_plan = {(m["method"], m["steps"]): m for m in results["measures"]}
    assert by_plan[TEACHER, 6]["held_out"] < 1e-6, "the held-out pairs are what the teacher makes of their noise"
    assert by_plan[LINES, 1]["speedup"] > by_plan[LINES, 4]["speedup"] > 1
    along = results["held_out_along_the_line"]
    assert by_plan[LINES, 1]["held_out"] == pytest.approx(along[LINES]["0.0"], rel=1e-3)
    assert by_plan[NAIVE, 1]["held_out"] == pytest.approx(along[NAIVE]["0.0"], rel=1e-3)
    assert told.count("made: ") == 8
    assert (tmp_path / "report" / "index.html").stat().st_size < 2e6
    assert main(command) == 0
    assert "made: " not in capsys.readouterr().out
