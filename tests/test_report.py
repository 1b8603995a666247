"""`pyflow report FILES`: what the page tells against the files by hand; what is refused."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from eval_files import CLASSES, SEEDS, SIDE, interval, write, write_bench, write_eval
from markup import Page
from PIL import Image
from test_eval import setting_of

from pyflow import report, report_files, studies
from pyflow.charts import Chart
from pyflow.cli import main
from pyflow.errors import InvalidInput
from pyflow.evaluation import Against, evaluate
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
    folder = tmp_path / "evals"
    folder.mkdir()
    return [
        write_eval(folder, rng, "teacher", (1, 4, 50), ms=0.6),
        write_eval(folder, rng, "<script>", (1, 4), method="<b>lines</b>"),
        write_bench(folder, rng, "bench & more"),
    ]


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


def test_the_same_plan_twice_is_refused(files, tmp_path, refusal):
    told = refusal("report", files[0], files[0], "--out", tmp_path / "page")
    assert re.search(r"teacher\.json and .*teacher\.json both hold teacher, 1 step; expected it once", told)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("change", [{"threads": 2}, {"device": "cuda"}, {"processor": "another processor"}])
def test_one_line_of_two_machines_is_refused(change, tmp_path, rng, refusal):
    first = write_eval(tmp_path, rng, "student", (1,))
    same = {"name": "student", "subject": record(first)["subject"]}
    facts = record(first)["facts"]
    assert made([first, write_eval(tmp_path, rng, "same", (2,), facts=facts, **same)], tmp_path / "page").lines
    other = write_eval(tmp_path, rng, "other", (2,), facts={**facts, **change}, **same)
    told = refusal("report", first, other, "--out", tmp_path / "page")
    assert re.search(r"both named 'student', but were timed on a processor, 1 thread, cpu and on ", told)
    assert str(next(iter(change.values()))) in told


@pytest.mark.parametrize("change", [{"guidance": 2.0}, {"method": "lines"}, {"solver": "heun"}])
def test_one_name_for_two_methods_is_refused(change, tmp_path, rng, refusal):
    first = write_eval(tmp_path, rng, "student", (1,))
    other = write_eval(tmp_path, rng, "other", (2,), name="student", subject=record(first)["subject"], **change)
    told = refusal("report", first, other, "--out", tmp_path / "page")
    assert re.search(rf"are both named 'student', but their {next(iter(change))} differs", told)


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
    for path in files:
        (folded,) = [text for text in page.words["details"] if f"({path.name})" in text]
        assert record(path)["facts"]["command"] in folded
    assert page.counts["details"] == len(files)
    evaluated = page.words["details"][0]
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


# ---- what is refused
def damaged(path: Path, change: str, to: str) -> None:
    """The file with the first match of a pattern replaced."""
    text, count = re.subn(change, to, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


BROKEN = {
    "NaN": (r'"value": [\d.]+', '"value": NaN', r"rows\[0\]: frechet: value is nan; expected a finite number"),
    "infinite": (r'"ms_per_image": [\d.]+', '"ms_per_image": 1e999', r"rows\[0\]: ms_per_image is inf"),
    "NaN of a class": (r'"0": {"frechet": [\d.]+', '"0": {"frechet": NaN', r"per_class\.0\.frechet is nan"),
    "NaN of a log": (r'"loss": [\d.e-]+', '"loss": NaN', "training: loss is nan"),
    "NaN of the floor": (r'"floor": {"frechet": 0.2', '"floor": {"frechet": NaN', r"floor\.frechet is nan"),
    "no figure": (r'"frechet": {', '"fréchet": {', r"rows\[0\] lacks frechet"),
    "no value": (r'"value": ', '"mean": ', r"rows\[0\]: frechet: unknown field mean"),
    "no interval": (r'"low": [\d.]+', '"low": null', "frechet: low is None and high .*; expected both or none"),
    "outside": (r'"low": [\d.]+', '"low": 9', r"value is .*; expected one in its interval, 9 to "),
    "no name": (r'"name": "teacher"', '"name": ""', "name is ''; expected"),
    "text": (r'"frechet": {"value": [\d.]+', '"frechet": {"value": "low"', 'value is "low"; expected'),
    "no setting": (r'"features": ', '"extractor": ', "lacks features"),
    "kind": (r'"kind": "eval"', '"kind": "poem"', 'kind is "poem"; expected JSON files of `pyflow eval`'),
    "no kind": (r'"kind": "eval", ', "", "kind is null"),
    "format": (r'"format": 1', '"format": 2', "format is 2; this pyflow reads format 1"),
    "not JSON": (r"^{", "", "is not valid JSON"),
    "a list": (r"^.*$", "[1]", "kind is null"),
    "no reference": (r'"count": 1497, ', "", "reference lacks count"),
    "no rows": (r'"rows": \[.*?\], "training"', '"rows": [], "training"', r"rows is \[\]; expected a list of one row"),
    "a row": (r'"rows": \[', '"rows": [7, ', r"rows\[0\] is 7; expected the fields of a Row"),
    "no steps": (r'"steps": 1,', '"steps": 0,', r"rows\[0\]: steps is 0; expected a number above 0"),
    "a plan twice": (r'"steps": 4,', '"steps": 1,', "rows holds .* twice; expected one row a plan"),
    "a class": (r'"per_class": {"0"', '"per_class": {"9"', "per_class names the class 9; expected numbers below 4"),
    "sheet gone": (r"teacher-steps-1.png", "lost.png", "sheet 'lost.png' is not beside the file"),
    "sheet elsewhere": (r"teacher-steps-1.png", "../secret.png", "sheet is '../secret.png'; expected the plain"),
    "no cells": (r'"cell": .*?\], ', "", r"sheet 'teacher-steps-1\.png' has no cell beside it; evaluate again"),
    "cells of an older file": (r'"cell": .*?"scale": \d', '"of": 1', "has no cell and no gap and no scale beside it"),
    "an empty cell": (r'"cell": \[6', '"cell": [0', "height of a cell is 0; expected a number above 0"),
    "a gap back": (r'"gap": 1', '"gap": -1', "gap is -1; expected a number above 0"),
    "half a cell": (r'"cell": \[6, ', '"cell": [', r"cell is \(7,\); expected the height and width"),
    "no scale": (r'"scale": 2', '"scale": 0', r"sheet 'teacher-steps-1\.png' has no scale beside it; evaluate again"),
    "other cells": (r'"cell": \[6', '"cell": [5', r"58x50 pixels, which is no grid of pictures of \(5, 7\)"),
    "half a character": (r'"method": "reflow', r'"method": "\\udcff', r"teacher\.json has '\\udcff' in its text"),
    "sheet of text": (r"teacher-steps-1.png", "teacher.json", "sheet 'teacher.json' is no PNG"),
}


@pytest.mark.parametrize(("change", "to", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_one_sentence_that_names_it(change, to, sentence, files, tmp_path, refusal):
    damaged(files[0], change, to)
    told = refusal("report", *files, "--out", tmp_path / "page")
    assert "teacher.json" in told
    assert re.search(sentence, told), told
    assert not (tmp_path / "page").exists()


def test_a_broken_table_of_latency_is_refused_too(files, tmp_path, refusal):
    damaged(files[2], r'"p99_ms": [\d.]+', '"p99_ms": NaN')
    told = refusal("report", files[2], "--out", tmp_path / "page")
    assert re.search(r"bench & more\.json: rows\[0\]: p99_ms is nan", told)


def test_two_tables_of_latency_of_one_name_are_refused(tmp_path, rng, refusal):
    paths = [write_bench(tmp_path, rng, "one"), write_bench(tmp_path, rng, "two", name="one")]
    told = refusal("report", *paths, "--out", tmp_path / "page")
    assert re.search(r"one\.json and .*two\.json are both named 'one'", told)


def test_sheets_of_other_sizes_are_refused(files, tmp_path, refusal):
    with Image.open(files[0].parent / "teacher-steps-4.png") as sheet:
        sheet.crop((0, 0, sheet.width, 2 * (SIDE + 2))).save(files[0].parent / "teacher-steps-4.png")
    told = refusal("report", files[0], "--out", tmp_path / "page")
    assert re.search(r"teacher\.json: sheet 'teacher-steps-4\.png' holds pictures \(1, 3.*; expected \(4, 3", told)
    Image.new("L", (40, 40), 9).save(files[0].parent / "teacher-steps-4.png")
    told = refusal("report", files[0], "--out", tmp_path / "page")
    assert "has 40x40 pixels, which is no grid of pictures of (6, 7) with gaps of 1 at scale 2" in told
    (files[0].parent / "teacher-steps-4.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    assert "can't be read" in refusal("report", files[0], "--out", tmp_path / "page")


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
