"""The demo's page, and the demo from end to end at its smallest size."""

import dataclasses
import json

import numpy as np
import pytest
from markup import Page
from PIL import Image
from pyflow.training import classifier, recipes

from pyflow import cli, demo, demo_page, quality
from pyflow.demo_page import Measure, Report
from pyflow.studies import STUDIES


@pytest.fixture
def found(rng) -> Report:
    measures = [
        Measure(method, steps, 1.5 * steps, 1e3 / (1.5 * steps), 2.0 * steps, 3.0 / steps, 0.9, 200 / steps)
        for method in ("teacher", "student")
        for steps in (1, 4)
    ]
    pictures = {(m.method, m.steps): rng.integers(0, 256, (20, 8, 8, 1), np.uint8) for m in measures}
    return Report("A <title>", "A lead & more", measures, 0.1, pictures, "How.", {"commit": "abc", "date": "today"})


def test_the_folder(found, tmp_path):
    demo_page.write(found, tmp_path / "report")
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["measures"] == [dataclasses.asdict(measure) for measure in found.measures]
    assert results["facts"] == {"commit": "abc", "date": "today"}
    for name in ("compare", "quality-latency", "teacher-1-steps", "student-4-steps"):
        picture = Image.open(tmp_path / "report" / f"{name}.png")
        assert np.asarray(picture).std() > 0, f"{name}.png is one flat colour"


def test_the_comparison_shows_the_same_seeds_in_order(found, tmp_path):
    demo_page.write(found, tmp_path / "report")
    sheet = np.asarray(Image.open(tmp_path / "report" / "compare.png"))[::4, ::4]
    for row, pictures in enumerate(found.pictures.values()):
        for column in range(10):
            top, left = 1 + 9 * row, 1 + 9 * column
            assert np.array_equal(sheet[top : top + 8, left : left + 8], pictures[column, :, :, 0])


def test_the_page_is_self_contained_and_escaped(found, tmp_path):
    demo_page.write(found, tmp_path / "report")
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert page.words["h1"] == ["A <title>"]
    assert page.words["p"][0] == "A lead & more"
    assert len(page.pictures) == 1 + len(found.pictures)
    assert page.counts["svg"] == 2, "the plot, for a desktop and for a phone"
    assert len(page.lines) == 1 + len(found.measures)


def test_the_table_holds_every_figure(found):
    lines = demo_page.summary(found.measures).splitlines()
    assert len(lines) == 1 + len(found.measures)
    assert lines[1].split() == ["teacher", "1", "1.50", "666.7", "2.00", "3.000", "90.0%", "200.0x"]


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch, capsys):
    """All its stages with next to no training; the second run makes nothing again and finds the same quality."""

    def short(recipe):
        return lambda *where: dataclasses.replace(recipe(*where), steps=4, batch=16)

    monkeypatch.setitem(recipes.TEACHERS, "cfm", short(recipes.cfm))
    monkeypatch.setitem(recipes.STUDENTS, "reflow", short(recipes.reflow))
    monkeypatch.setattr(demo, "STEPS", (1, 2, 3))
    monkeypatch.setattr(demo, "PAIRS", 40)
    monkeypatch.setattr(quality, "PICTURES", 100)
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda data: train(data, steps=5))

    first = demo.run(tmp_path / "run", tmp_path / "report")
    assert capsys.readouterr().out.count("made: ") == 5
    again = demo.run(tmp_path / "run", tmp_path / "report")
    out = capsys.readouterr().out
    assert out.count("reused: ") == 5
    assert "made: " not in out
    assert [(m.method, m.steps) for m in first] == [
        (kind, steps) for kind in ("teacher", "student") for steps in (1, 2, 3)
    ]
    for before, after in zip(first, again):
        assert before.distance == pytest.approx(after.distance, rel=1e-3)
        assert before.label_accuracy == pytest.approx(after.label_accuracy, abs=0.02)
    assert (tmp_path / "report" / "index.html").is_file()


def test_no_report_lies_inside_another_which_would_refuse_to_be_replaced():
    folders = [cli.parse(words).report for words in (["demo"], *(["report", name] for name in STUDIES))]
    folders.append(cli.parse(["report", "a.json"]).out)
    inside = [(one, other) for one in folders for other in folders if one is not other and other.is_relative_to(one)]
    assert len(folders) == 5
    assert not inside
