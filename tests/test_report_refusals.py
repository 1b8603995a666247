"""`pyflow report FILES`: the files that it refuses, each in one sentence that names them."""

import re
from pathlib import Path

import pytest
from eval_files import SIDE, write_bench, write_eval, write_three
from PIL import Image
from test_report import made, record

from pyflow.charts import Chart


@pytest.fixture(autouse=True)
def unpainted(monkeypatch):
    monkeypatch.setattr(Chart, "png", lambda chart: b"")


@pytest.fixture
def files(tmp_path, rng) -> list[Path]:
    return write_three(tmp_path / "evals", rng)


def damaged(path: Path, change: str, to: str) -> None:
    """The file with the first match of a pattern replaced."""
    text, count = re.subn(change, to, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


BROKEN = {
    "NaN": (r'"value": [\d.]+', '"value": NaN', r"rows\[0\]: frechet: value is nan; expected a finite number"),
    "infinite": (r'"ms_per_image": [\d.]+', '"ms_per_image": 1e999', r"rows\[0\]: ms_per_image is inf"),
    "NaN of a class": (
        r'"0": {"frechet": {"value": [\d.]+',
        '"0": {"frechet": {"value": NaN',
        r"0\.frechet: value is nan",
    ),
    "a class of an older file": (
        r'"0": {"frechet": {.*?}',
        '"0": {"frechet": 1.5',
        r"0\.frechet is 1\.5; expected the fields",
    ),
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
