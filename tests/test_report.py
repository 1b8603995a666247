"""`pyflow report FILES`: what the page tells against the files by hand; what is refused."""

import argparse
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from eval_files import CLASSES, SEEDS, SIDE, interval, write, write_bench, write_eval, write_three
from markup import Page
from PIL import Image
from test_eval import setting_of

from pyflow import report, report_files, studies
from pyflow.charts import Chart
from pyflow.cli import main
from pyflow.errors import InvalidInput
from pyflow.eval_setting import Against
from pyflow.evaluation import evaluate
from pyflow.report_groups import groups
from pyflow.report_words import decimals_of, lead


def made(paths, folder: Path) -> Page:
    report.write(paths, folder)
    return Page((folder / "index.html").read_text())


def record(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture
def painted() -> None:
    """For a test that looks at the PNGs of the charts."""


@pytest.fixture(autouse=True)
def unpainted(request, monkeypatch):
    """The other tests need no matplotlib, which takes most of a page's time."""
    if "painted" not in request.fixturenames:
        monkeypatch.setattr(Chart, "png", lambda chart: b"")


@pytest.fixture
def files(tmp_path, rng) -> list[Path]:
    return write_three(tmp_path / "evals", rng)


def test_the_page_is_valid_self_contained_and_escaped(files, tmp_path, painted):
    page = made(files, tmp_path / "page")
    assert page.words["h1"] == ["teacher, <script> on digits"]
    assert page.words["strong"] == ["teacher", "<script>"]
    assert "loss of <b>lines</b> (log)" in page.words["text"]
    rows = [row for path in files[:2] for row in record(path)["rows"]]
    assert len(page.pictures) == 1 + len(rows)
    pngs = {path.name for path in (tmp_path / "page").glob("*.png")}
    assert pngs >= {f"{name}.png" for name in ("quality-latency", "same-seeds", "by-class", "ssim", "latency-1")}
    for name in pngs:
        assert np.asarray(Image.open(tmp_path / "page" / name)).std() > 0, name


def test_every_figure_is_in_the_tables(files, tmp_path):
    page = made(files, tmp_path / "page")
    slowest = record(files[0])["rows"][-1]["ms_per_image"]
    for path in files[:2]:
        for row in record(path)["rows"]:
            own = [record(path)["name"], str(row["steps"])]
            cells = [cell for line in page.lines if line[:2] == own for cell in line[2:]]
            frechet = row["frechet"]
            found = [tuple(map(float, cell.split(" ± "))) for cell in cells if re.fullmatch(r"[\d.]+ ± [\d.]+", cell)]
            expected = (frechet["value"], (frechet["high"] - frechet["low"]) / 2)
            assert any(one == pytest.approx(expected, abs=6e-3) for one in found), (expected, cells)
            accuracy = row["label_accuracy"]
            assert f"{accuracy['value']:.1%} ± {(accuracy['high'] - accuracy['low']) / 2:.1%}" in cells
            factor = slowest / row["ms_per_image"]
            assert (f"{factor:.0f}×" if factor >= 9.95 else f"{factor:.1f}×") in cells
    for row in record(files[2])["rows"]:
        found = [line for line in page.lines if line[:3] == ["bench & more", str(row["batch"]), str(row["steps"])]]
        assert [float(cell) for cell in found[0][3:]] == pytest.approx(
            [row["median_ms"], row["p99_ms"], row["ms_per_image"]], abs=6e-2
        )


def test_each_method_has_a_sentence(tmp_path, rng):
    path = write_eval(tmp_path, rng, "student", (1, 4), ms=0.25)
    data = record(path)
    for row, value in zip(data["rows"], (0.5, 0.25)):
        row["frechet"] = {"value": value, "low": value - 0.01, "high": value + 0.01}
    page = made([write(path, data)], tmp_path / "page")
    assert page.words["ul"][-1] == (
        "student in 1 step: distance 0.500 (0.490 to 0.510), 0.250 ms a picture, 4.0× as fast as the longest plan. "
        "Best in 4 steps: distance 0.250 (0.240 to 0.260), 1.00 ms a picture, the longest plan."
    )


def test_the_lead_is_the_fastest_plan_that_is_no_worse_than_the_longest(tmp_path, rng):
    names = ["teacher", "one", "two", "three"]
    paths = [write_eval(tmp_path, rng, name, (1, 2, 4), ms=float(rng.uniform(0.1, 1))) for name in names]
    paths.append(write_eval(tmp_path, rng, "long", (100,)))
    plans = [(row["ms_per_image"], record(path)["name"], row) for path in paths for row in record(path)["rows"]]
    bound = next(row["frechet"]["high"] for _, name, row in plans if name == "long")
    _, name, row = min((plan for plan in plans if plan[2]["frechet"]["value"] <= bound), key=lambda plan: plan[0])
    (group,) = groups(report_files.read(paths)[0])
    told = lead(group)
    if name == "long":
        assert told.startswith("No faster plan reaches long, 100 steps")
    else:
        assert told.startswith(f"{name}, {row['steps']} step{'s' * (row['steps'] > 1)}, reaches long, 100 steps")


def test_pictures_of_the_same_seeds_stand_in_their_rows(files, tmp_path):
    made(files, tmp_path / "page")
    sheet = np.asarray(Image.open(tmp_path / "page" / "same-seeds.png"))
    scale = round(64 / (SIDE + 1))
    tall, wide = scale * SIDE + 1, scale * (SIDE + 1) + 1  # with a line of grey
    plans = [path.parent / row["sheet"] for path in files[:2] for row in record(path)["rows"]]
    assert sheet.shape[:2] == (len(plans) * tall + 1, CLASSES * wide + 1)
    for line, plan in enumerate(plans):
        whole = np.asarray(Image.open(plan))[1::2, 1::2]
        assert whole.shape[:2] == (CLASSES * (SIDE + 1) + 1, SEEDS * (SIDE + 2) + 1)
        for label in range(CLASSES):
            top, left = line * tall + 1, label * wide + 1
            shown = sheet[top : top + tall - 1 : scale, left : left + wide - 1 : scale]
            first = label * (SIDE + 1) + 1
            assert np.array_equal(shown, whole[first : first + SIDE, 1 : SIDE + 2])


@pytest.mark.parametrize(
    "change",
    [
        {"features": "Inception V3 of clean-fid, 2048 features"},
        {"data": "cifar10"},
        {"num_samples": 5000},
        {"reference": {"count": 1497, "sha256": "cd" * 32}},
        {"classes": ["a", "b", "c", "d"]},
    ],
    ids=["features", "data", "num_samples", "reference", "classes"],
)
def test_figures_of_other_settings_are_never_on_one_axis(change, tmp_path, rng):
    paths = [write_eval(tmp_path, rng, "ours", (1, 4)), write_eval(tmp_path, rng, "theirs", (1, 4), **change)]
    page = made(paths, tmp_path / "page")
    (note,) = [text for text in page.words["p"] if "can't be compared" in text]
    (value,) = change.values()
    told = "real pictures" if "reference" in change else str(tuple(value) if "classes" in change else value)
    assert told in note
    assert len([head for head in page.words["h2"] if head[0] in "12"]) == 2
    plots = [text for text in page.words["svg"] if "against latency" in text]
    assert len(plots) == 4, "one a setting, for a desktop and a phone"
    assert not [text for text in page.words["svg"] if "ours" in text and "theirs" in text]
    assert (tmp_path / "page" / "1-quality-latency.png").is_file()
    assert (tmp_path / "page" / "2-quality-latency.png").is_file()


def test_times_of_two_machines_are_on_two_plots_and_in_no_ratio(tmp_path, rng):
    facts = {"processor": "another processor", "threads": 2}
    paths = [write_eval(tmp_path, rng, "ours", (1, 4)), write_eval(tmp_path, rng, "theirs", (1, 2), facts=facts)]
    page = made(paths, tmp_path / "page")
    assert len([text for text in page.words["svg"] if "against latency" in text]) == 4
    assert not [text for text in page.words["svg"] if "against latency" in text and "ours" in text and "theirs" in text]
    assert "on another machine than the longest plan" in next(t for t in page.words["li"] if t.startswith("theirs"))
    assert any(line[:2] == ["theirs", "1"] or "–" in line for line in page.lines)


def test_files_of_one_method_are_one_line(tmp_path, rng):
    whole = write_eval(tmp_path, rng, "whole", (1, 2, 8))
    data = record(whole)
    parts = [write(tmp_path / f"{at}.json", {**data, "rows": data["rows"][at : at + 1]}) for at in (2, 0, 1)]
    (method,) = groups(report_files.read(parts)[0])[0].methods
    assert [row.steps for row in method.rows] == [1, 2, 8]
    assert [row.frechet.value for row in method.rows] == [row["frechet"]["value"] for row in data["rows"]]


# ---- by class
def test_classes_have_bars_with_intervals_and_a_table(files, tmp_path):
    page = made(files, tmp_path / "page")
    plans = [("teacher", 0), ("teacher", 2), ("<script>", 0)]
    rows = {record(path)["name"]: record(path)["rows"] for path in files[:2]}
    for name, at in plans:
        row = rows[name][at]
        called = f"{name}, {row['steps']} step{'s' * (row['steps'] > 1)}"
        (line,) = [line for line in page.lines if line[0] == called and len(line) == 1 + CLASSES]
        for cell, (label, figures) in zip(line[1:], row["per_class"].items()):
            told = figures["frechet"]
            half = (told["high"] - told["low"]) / 2
            assert [float(part) for part in cell.split(" ± ")] == pytest.approx([told["value"], half], abs=6e-3)
            bar = f"{called}, class {label}: {told['value']:.4g} ({told['low']:.4g} to {told['high']:.4g})"
            assert html.escape(bar) in page.source
    (told,) = [text for text in page.words["figcaption"] if "The shortest plan of each method" in text]
    assert "of the pictures of 3 seeds together, its interval from leaving out each seed in turn" in told


def test_classes_of_other_numbers_of_seeds_are_on_another_chart(tmp_path, rng):
    """They are of all seeds together, and a distance falls with the number of pictures."""
    paths = [write_eval(tmp_path, rng, "few", (1, 4)), write_eval(tmp_path, rng, "many", (1, 4), seeds=[0, 1, 2, 3, 4])]
    page = made(paths, tmp_path / "page")
    charts = [text for text in page.words["svg"] if "Distance by class" in text]
    assert len(charts) == 4, "one a number of seeds, for a desktop and a phone"
    assert not [text for text in charts if "few" in text and "many" in text]
    assert {path.name for path in (tmp_path / "page").glob("by-class*")} == {
        "by-class-3-seeds.png",
        "by-class-5-seeds.png",
    }


def test_an_interval_of_a_class_ends_at_zero(tmp_path, rng):
    path = write_eval(tmp_path, rng, "one", (1,))
    data = record(path)
    data["rows"][0]["per_class"] = {"2": {"frechet": {"value": 0.5, "low": -0.25, "high": 1.25}}}
    page = made([write(path, data)], tmp_path / "page")
    assert "one, 1 step, class 2: 0.5 (0 to 1.25)" in page.source
    assert [line for line in page.lines if line[1:] == ["0.500 ± 0.750"]]


def test_a_plan_without_straightness_says_why(tmp_path, rng):
    path = write_eval(tmp_path, rng, "student", (1, 4))
    data = record(path)
    del data["rows"][0]["straightness"]
    data["rows"][0]["no_straightness"] = "one step is a <line>"
    page = made([write(path, data)], tmp_path / "page")
    assert [text for text in page.words["p"] if "No straightness of student, 1 step: one step is a <line>." in text]


# ---- what may be absent, and what stands beside
def test_what_may_be_absent_is_left_out(tmp_path, rng):
    """One seed, no classes, no logs, no sheets, no floor, nothing to compare with."""
    path = write_eval(tmp_path, rng, "bare", (1, 2), training=[], classes=[], floor={}, seeds=[0], solver=None)
    data = record(path)
    for row in data["rows"]:
        for name in ("sheet", "against", "straightness", "label_accuracy"):
            del row[name]
        row["per_class"] = {}
        for name in ("frechet", "kernel", "precision", "recall", "density", "coverage"):
            row[name] |= {"low": None, "high": None}
    page = made([write(path, data)], tmp_path / "page")
    assert page.words["h2"] == ["Quality against latency", "Fidelity and variety", "The figures", page.words["h2"][-1]]
    assert not page.pictures
    assert not [cell for line in page.lines for cell in line if "±" in cell]


def test_tables_of_latency_alone(tmp_path, rng):
    paths = [write_bench(tmp_path, rng, name) for name in ("one", "two")]
    page = made(paths, tmp_path / "page")
    assert page.words["h1"] == ["one, two: latency"]
    assert page.words["h2"] == ["Latency alone", "Where these figures come from"]


def test_an_unusual_grid_has_its_name(tmp_path, rng):
    path = write_eval(tmp_path, rng, "student", (1, 4))
    data = record(path)
    data["rows"] += [{**data["rows"][1], "grid": "searched"}, {**data["rows"][1], "grid": [0.0, 0.2, 0.5, 0.9, 1.0]}]
    page = made([write(path, data)], tmp_path / "page")
    assert {"1", "4", "4 searched", "4 own"} <= {line[1] for line in page.lines}


def test_facts_of_every_file_are_there(files, tmp_path):
    page = made(files, tmp_path / "page")
    of_files = [text for text in page.words["details"] if ".json)" in text]
    for path in files:
        (folded,) = [text for text in of_files if f"({path.name})" in text]
        assert record(path)["facts"]["command"] in folded
    assert len(of_files) == len(files)
    evaluated = of_files[0]
    assert "digits classifier, 48 features" in evaluated
    assert "abc" in evaluated


def test_a_page_is_written_anew_but_strangers_stay(files, tmp_path):
    report.write(files, tmp_path / "page")
    report.write(files[2:], tmp_path / "page")
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"index.html", "latency-1.png", "report.json"}
    (tmp_path / "page" / "thesis.txt").touch()
    with pytest.raises(InvalidInput, match=r"holds thesis\.txt, which would be deleted"):
        report.write(files, tmp_path / "page")
    assert (tmp_path / "page" / "index.html").is_file()


# ---- on the command line
@pytest.mark.parametrize("words", [("nowhere.json",), ("files", "nowhere.json"), ("--out", "page", "nowhere.json")])
def test_both_spellings_reach_the_files(words, clean_refusal):
    assert "nowhere.json is no file; expected JSON files of `pyflow eval`" in clean_refusal("report", *words)


def test_the_names_of_studies_are_not_taken_for_files(capsys):
    with pytest.raises(SystemExit):
        main(["report", "nothing", "--help"])
    assert "usage: pyflow report [-h]" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    studies.add(parser, "")
    (known,) = (action.choices for action in parser._actions if action.choices)
    assert {*studies.STUDIES, studies.FILES} == set(known)
    assert studies.spelled(["report", "a.json", "b.json"]) == ["report", "files", "a.json", "b.json"]
    for study in studies.STUDIES:
        assert studies.spelled(["report", study, "--out", "x"]) == ["report", study, "--out", "x"]
        with pytest.raises(SystemExit) as left:
            main(["report", study, "--help"])
        assert left.value.code == 0


def test_the_command_writes_a_page(files, tmp_path, capsys):
    assert main(["report", *map(str, files), "--out", str(tmp_path / "page")]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"report: {tmp_path / 'page' / 'index.html'}\n")
    assert Page((tmp_path / "page" / "index.html").read_text()).words["p"][0] in out


def test_a_file_of_pyflow_eval_itself(judge, tiny_checkpoint, tmp_path):
    """Two evaluations of a tiny network, one beside the other, as the command writes them."""
    base, steps = setting_of(judge), (1, 3)
    evaluate(tiny_checkpoint, steps, base, tmp_path / "teacher.json")
    beside = setting_of(judge, against=Against(tiny_checkpoint, 3), grid="cosine", seeds=1)
    evaluate(tiny_checkpoint, steps, beside, tmp_path / "student.json")
    paths = [tmp_path / "teacher.json", tmp_path / "student.json"]
    page = made(paths, tmp_path / "page")
    assert page.words["strong"] == ["teacher", "student"]
    rows = [row for path in paths for row in record(path)["rows"]]
    assert len(page.pictures) == 1 + len(rows)
    distances = next(line for line in page.lines if line[:2] == ["student", "3 cosine"])
    assert f"{rows[-1]['against']['ssim']:.3f}" in distances
    sheet = np.asarray(Image.open(tmp_path / "page" / "same-seeds.png"))
    assert np.array_equal(sheet[:66], sheet[65 * 2 : 65 * 2 + 66]), "one step is the same on both grids"


def test_numbers_have_the_decimals_of_their_column(rng):
    values = (10 ** rng.uniform(-1, 1, 9)).tolist()
    told = [decimals_of(values)(value) for value in values]
    assert len({len(cell.partition(".")[2]) for cell in told}) == 1, told
    assert [float(cell) for cell in told] == pytest.approx(values, abs=0.051)
    assert decimals_of([-0.25])(-0.25) == "−0.250"
    assert decimals_of([0.0])(0.0) == "0.00"
    assert interval(rng, 1.0)["value"] == 1.0
