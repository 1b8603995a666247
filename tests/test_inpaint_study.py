"""The inpainting study: its figures are those of its pictures, its page holds them all, and a misfit is named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import UNET, save

from pyflow import inpaint_page, masks
from pyflow.cli import main
from pyflow.errors import InvalidInput
from pyflow.inpaint_page import BASE, EVERY, HOLE, METHODS, TUNED, WHOLE, Errors, Found, Plan
from pyflow.inpaint_study import Setting
from pyflow.similarity import mse, ssim, ssim_every_pixel
from pyflow.spec import Spec

MASKS, STEPS, SIDE = ("centre", "boxes", "half"), (1, 3), 16


@pytest.fixture(scope="module")
def found() -> Found:
    """Of random pictures, a class at the end having one alone."""
    entropy = np.random.SeedSequence().entropy
    print(f"np.random.default_rng({entropy})")
    rng = np.random.default_rng(entropy)
    labels = np.array([0, 1, 2, 0, 1])
    real = rng.integers(256, size=(5, SIDE, SIDE, 1), dtype=np.uint8)
    drawn = {kind: masks.draw(kind, SIDE, SIDE, 5, seed=int(rng.integers(2**32))) for kind in MASKS}
    made, errors = {}, {}
    for plan in (Plan(method, kind, steps) for kind in MASKS for method in METHODS for steps in STEPS):
        inside = drawn[plan.mask].transpose(0, 2, 3, 1) == 1
        made[plan] = np.where(inside, rng.integers(256, size=real.shape, dtype=np.uint8), real)
        power = np.square(real / 1.0).mean(axis=(1, 2, 3))
        pair, hole = (real, made[plan]), drawn[plan.mask]
        errors[plan] = {
            WHOLE: Errors(mse(*pair), power, ssim(*pair), ssim_every_pixel(*pair)),
            HOLE: Errors(mse(*pair, hole), power, ssim(*pair, hole)),
        }
    return Found(
        "a <folder>",
        {0: "cat", 1: "dog", 2: "a <bird>"},
        labels,
        MASKS,
        STEPS,
        errors,
        real,
        {kind: np.full_like(real, 128) for kind in MASKS},
        made,
        {kind: float(of_kind.mean()) for kind, of_kind in drawn.items()},
        "How.",
        {"commit": "abc"},
    )


@pytest.fixture(scope="module")
def report(found, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "report"
    inpaint_page.write(found, folder)
    return folder


def test_the_page_holds_every_part(report):
    page = (report / "index.html").read_text()
    headings = ["Original, masked, base, fine-tuned", "How hard each mask is", "Each class under each mask"]
    assert re.findall("<h2>([^<]*)", page)[:5] == [*headings, "Fewer and fewer calls", "The table"]
    sources = re.findall(r'src="([^"]*)', page)
    assert len(sources) == len(MASKS)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "a &lt;bird&gt;" in page
    assert "<bird>" not in page
    assert not re.search(r'(src|href)="http', page)
    assert page.count("<tr>") == 1 + len(MASKS) * len(STEPS) * len(METHODS)
    assert [name in page for name in ("whole SSIM<", "whole SSIM, every pixel<", "hole SSIM<")] == [True] * 3


def test_each_row_of_pictures_is_what_its_name_says(found, report):
    for kind in MASKS:
        sheet = np.asarray(Image.open(report / f"rows-{kind}.png"))
        scale = sheet.shape[1] // (5 * (SIDE + 1) + 1)
        small = sheet[::scale, ::scale]
        rows = [found.real, found.masked[kind], *(found.made[Plan(method, kind, 3)] for method in METHODS)]
        for row, pictures in enumerate(rows):
            for column, picture in enumerate(pictures):
                top, left = 1 + row * (SIDE + 1), 1 + column * (SIDE + 1)
                np.testing.assert_array_equal(small[top : top + SIDE, left : left + SIDE], picture[..., 0])


def test_the_results_are_figures_of_the_pictures(found, report):
    """Each by its own sums over the pixels; the hole's leave out what is kept."""
    results = json.loads((report / "results.json").read_text())
    assert len(results["rows"]) == len(MASKS) * len(STEPS) * len(METHODS) * 4
    for row in results["rows"]:
        plan = Plan(row["method"], row["mask"], row["steps"])
        number = {"cat": 0, "dog": 1, "a <bird>": 2}.get(row["class"])
        chosen = np.full(5, True) if row["class"] == EVERY else found.labels == number
        assert row["pictures"] == chosen.sum()
        real, made = (pictures[chosen] / 1.0 for pictures in (found.real, found.made[plan]))
        off, power = np.square(real - made), np.square(real).mean()
        share = off[off > 0].size / off.size  # a random pixel is seldom equal
        assert row[WHOLE]["nmse"] == pytest.approx(off.mean() / power)
        assert row[WHOLE]["psnr"] == pytest.approx(10 * np.log10(255**2 / off.mean()))
        assert row[HOLE]["psnr"] < row[WHOLE]["psnr"] - 2
        pair = found.real[chosen], found.made[plan][chosen]
        assert row[WHOLE]["ssim"] == pytest.approx(ssim(*pair).mean())
        assert row[WHOLE]["ssim_every_pixel"] == pytest.approx(ssim_every_pixel(*pair).mean())
        assert "ssim_every_pixel" not in row[HOLE], "a hole's windows stand around each of its pixels as it is"
        if plan.mask != "boxes":  # whose holes differ in size, so that their mean errors have other weights
            assert row[HOLE]["nmse"] == pytest.approx(row[WHOLE]["nmse"] / {"centre": 1 / 4, "half": 1 / 2}[plan.mask])
            assert share == pytest.approx({"centre": 1 / 4, "half": 1 / 2}[plan.mask], abs=0.02)


def test_equal_pictures_leave_a_figure_that_json_holds():
    nothing = Errors(np.zeros(3), np.ones(3), np.ones(3))
    assert nothing.over(np.full(3, True)) == {"nmse": 0, "psnr": inpaint_page.MOST_DECIBELS, "ssim": 1}
    black = Errors(np.ones(3), np.zeros(3), np.ones(3))
    assert np.isfinite([*black.over(np.full(3, True)).values()]).all()


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("networks")
    plain = replace(UNET, shape=(1, SIDE, SIDE), classes=10, attention=(8,))
    made = {"base": Spec(plain), "tuned": Spec(replace(plain, extra=2), null_label=True), "small": Spec(UNET)}
    return {name: str(save(folder / name, spec)) for name, spec in made.items()}


def test_the_study_of_two_checkpoints(networks, tmp_path, capsys):
    named = ["--base", networks["base"], "--tuned", networks["tuned"], "--each", "1", "--calls", "1,2"]
    words = [*named, "--masks", "boxes,left", "--guidance", "2", "--report", str(tmp_path / "report")]
    assert main(["report", "inpaint", *words]) == 0
    told = capsys.readouterr().out
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    rows = [row for row in results["rows"] if row["class"] == EVERY]
    assert [(row["mask"], row["method"], row["steps"]) for row in rows] == [
        (kind, method, steps) for kind in ("boxes", "left") for method in (BASE, TUNED) for steps in (1, 2)
    ]
    assert all(row["pictures"] == 10 for row in rows)
    assert results["shares"]["left"] == 0.5
    assert "Told the mask: fine-tuned." in results["protocol"]
    assert "Solver renoise" in results["protocol"]
    assert results["facts"]["command"].startswith("pyflow report inpaint --base base --tuned tuned --each 1")
    assert f"{rows[0][HOLE]['psnr']:.2f}" in told
    sheet = np.asarray(Image.open(tmp_path / "report" / "rows-left.png"))
    scale = sheet.shape[1] // (10 * (SIDE + 1) + 1)
    small = sheet[::scale, ::scale]
    for row in (2, 3):  # the right halves are the original's
        for column in range(10):
            left = 1 + column * (SIDE + 1)
            kept = small[1 : 1 + SIDE, left + SIDE // 2 : left + SIDE]
            top = 1 + row * (SIDE + 1)
            np.testing.assert_array_equal(small[top : top + SIDE, left + SIDE // 2 : left + SIDE], kept)


@pytest.mark.slow
def test_the_study_from_nothing_and_again(tmp_path, capsys):
    words = ["--each", "1", "--calls", "1,2", "--masks", "boxes,half", "--steps", "4", "--batch", "8"]
    command = ["report", "inpaint", *words, "--out", str(tmp_path / "run"), "--report", str(tmp_path / "report")]
    assert main(command) == 0
    assert capsys.readouterr().out.count("made: ") == 2
    assert main(command) == 0
    assert capsys.readouterr().out.count("reused: ") == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--data checkerboard", "data is 'checkerboard'; expected pictures"),
        ("--each 0", "each is 0; expected 1 or more pictures a class"),
        ("--masks circle", "masks is ('circle',); expected some of centre, boxes"),
        ("--masks left,left", "expected each once"),
        ("--calls 0", "calls is (0,); expected step counts, 1 or more"),
        ("--guidance -1", "guidance is -1.0; expected 0 to 100"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_trained(clean_refusal, words, sentence):
    assert sentence in clean_refusal("report", "inpaint", *words.split())


def test_networks_of_other_pictures_are_refused(networks, refusal, tmp_path):
    named = ["--base", networks["base"], "--tuned", networks["small"], "--report", tmp_path / "report"]
    told = refusal("report", "inpaint", *named)
    assert "the fine-tuned network makes (1, 8, 8) of 3 classes; expected (1, 16, 16) of 10, which 'digits'" in told
    assert not (tmp_path / "report").exists()


def test_a_setting_names_what_is_wrong():
    with pytest.raises(InvalidInput, match=r"masks is \(\); expected some of"):
        Setting(masks=())
