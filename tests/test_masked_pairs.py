"""Pairs with masks: what they keep is the data's, bit for bit, and a student of them knows it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyflow.training import holes as pair_holes
from pyflow.training import pairs
from pyflow.training.batch import paired
from pyflow.training.data import load_dataset
from pyflow.training.pairs import PairsSpec
from tiny import POINTS, UNET, network, save
from tiny_runs import killed_at_rename

from pyflow import checkpoint, commands, load
from pyflow import masks as mask_files
from pyflow.artefact import json_bytes, sha256
from pyflow.cli import main
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.noise import normal
from pyflow.sampler import Known
from pyflow.spec import Spec

DIGITS = replace(UNET, shape=(1, 16, 16), channels=8, attention=(), classes=10)
SEEING = replace(DIGITS, extra=2)
SETTING = {"count": 25, "steps": 2, "guidance": 1.0, "seed": 9, "shard": 8, "batch": 5}
MASKED = {"masks": "mixed", "data": "digits"}
SPEC = PairsSpec("abc", (1, 8, 8), 3, 10, 5, "euler", 2, 1.0, shard=4, masks="boxes", masked=0.5, data="def")


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory):
    """Says something else for everything that it is told."""
    return save(tmp_path_factory.mktemp("inpainter") / "run", Spec(SEEING, null_label=True), 4)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def words(folder, source, **more: object) -> list[str]:
    asked = {**SETTING, **MASKED, **more, "out": folder}
    return ["pairs", str(source), *(str(word) for name, value in asked.items() for word in (f"--{name}", value))]


# ---- what they keep
@pytest.mark.parametrize("kind", ["mixed", "centre"])
def test_they_keep_a_picture_of_the_data_of_their_label_bit_for_bit(kind, inpainter, tmp_path, rng):
    seed, data = int(rng.integers(2**31)), load_dataset("digits")
    commands.make_pairs(inpainter, tmp_path / "p", **{**SETTING, "seed": seed, "count": 40}, masks=kind, data="digits")
    (noise, labels, pictures, masks), spec = pairs.load(tmp_path / "p")
    assert (spec.masks, spec.masked, spec.data) == (kind, 0.5, data.sha256)
    assert masks.shape == (40, 1, 16, 16)
    np.testing.assert_array_equal(noise.numpy().reshape(40, -1), normal(seed, 0, 40, 256, 0))
    drawn, seen = torch.from_numpy(mask_files.draw(kind, 16, 16, 40, seed=seed)), 0
    for label, picture, mask, its in zip(labels, pictures, masks, drawn):
        if mask.all():
            continue
        seen += 1
        assert torch.equal(mask, its)
        kept = mask[0] == 0
        same = (data.images[:, 0][:, kept] == picture[0][kept]).all(1)
        assert same.any(), f"seed {seed}: no picture of the data is kept"
        assert label in data.labels[same]
    assert 4 < seen < 36


def test_a_pair_is_what_the_sampler_repaints(inpainter, tmp_path):
    """Alone as in its batch: picture, mask, noise and label belong to the index."""
    commands.make_pairs(inpainter, tmp_path / "p", **SETTING, **MASKED)
    (_, labels, pictures, masks), spec = pairs.load(tmp_path / "p")
    flow = load(inpainter)
    for index in (0, 4, 5, 24):
        known = Known(pictures[index : index + 1].numpy(), masks[index : index + 1].numpy())
        came = flow.sample(
            1, steps=2, solver=spec.solver, seed=9, first=index, label=int(labels[index]), known=known
        ).states
        np.testing.assert_allclose(came[0], pictures[index].numpy(), rtol=0, atol=2e-5)


def test_each_picture_of_a_label_is_kept_once_each_time_round():
    of_label = [np.array([3, 1, 9, 4]), np.array([0, 2, 5]), np.array([7])]
    chosen = pair_holes.pictures(of_label, 6, 0, 36)
    for label, own in enumerate(of_label):
        its = chosen[label::3]
        laps = [tuple(its[at : at + len(own)]) for at in range(0, 12, len(own))]
        assert all(sorted(lap) == sorted(own) for lap in laps)
        assert len({*laps}) > 1 or len(own) == 1
    np.testing.assert_array_equal(pair_holes.pictures(of_label, 6, 17, 9), chosen[17:26])
    assert not np.array_equal(pair_holes.pictures(of_label, 7, 0, 36), chosen)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_this_share_of_them_has_a_mask_of_their_index(share, rng):
    seed = int(rng.integers(2**32))
    drawn = pair_holes.holes("irregular", share, (8, 8), seed, 0, 2000)
    keeps = (drawn == 0).any((1, 2, 3))
    assert abs(keeps.mean() - share) <= 5 * math.sqrt(share * (1 - share) / 2000), seed
    for label in range(10):  # no class has all of the masks
        assert abs(keeps[label::10].mean() - share) <= 5 * math.sqrt(share * (1 - share) / 200), (seed, label)
    np.testing.assert_array_equal(pair_holes.holes("irregular", share, (8, 8), seed, 700, 9), drawn[700:709])


def test_a_batch_carries_the_masks_of_its_pairs(inpainter, tmp_path, seed):
    commands.make_pairs(inpainter, tmp_path / "p", **SETTING, **MASKED)
    loaded = pairs.load(tmp_path / "p")[0]
    noise, labels, pictures, masks = loaded
    batch = paired(loaded)(32)
    for index in range(32):
        (at,) = [place for place in range(25) if torch.equal(noise[place], batch.noise[index])]
        assert torch.equal(batch.mask[index], masks[at])
        assert torch.equal(batch.image[index], pictures[at])
        assert batch.label[index] == labels[at]
    assert paired(loaded[:3])(4).mask is None


# ---- made once, resumed byte for byte
def test_pairs_without_masks_are_what_they_were(tmp_path, tiny_checkpoint):
    """Their manifest and their records say nothing of masks, so that those of an older pyflow go on."""
    commands.make_pairs(tiny_checkpoint, tmp_path / "p", count=4, steps=1, guidance=1.0, seed=2)
    told = json.loads((tmp_path / "p" / pairs.MANIFEST).read_text())
    assert not {"masks", "masked", "data"} & {*told["spec"], *told["origin"]}
    plain = replace(SPEC, masks=None, masked=None, data=None)
    older = {name: value for name, value in vars(plain).items() if name not in ("masks", "masked", "data")}
    assert plain.identity == sha256(json_bytes(older | {"shape": [1, 8, 8]}))
    assert plain.identity != SPEC.identity


COMMAND = """
import sys
from pyflow.cli import main
main(sys.argv[1:])
"""


def test_killed_between_two_files_they_go_on_to_the_same_bytes(inpainter, tmp_path):
    assert main(words(tmp_path / "whole", inpainter)) == 0
    expected = files(tmp_path / "whole")
    assert killed_at_rename(3, COMMAND, *words(tmp_path / "run", inpainter))
    assert main(words(tmp_path / "run", inpainter)) == 0
    came = files(tmp_path / "run")
    assert {name: came[name] for name in expected} == expected
    content = bytearray(expected["shard-00001.npy"])
    content[-1] ^= 1
    (tmp_path / "run" / "shard-00001.npy").write_bytes(content)
    with pytest.raises(InvalidArtefact, match="shard-00001"):
        pairs.load(tmp_path / "run")
    assert main(words(tmp_path / "run", inpainter)) == 0
    assert files(tmp_path / "run")["shard-00001.npy"] == expected["shard-00001.npy"]


@pytest.mark.parametrize("change", [{"masks": "centre"}, {"masked": 0.9}], ids=str)
def test_other_masks_are_other_pairs(inpainter, tmp_path, refusal, change):
    assert main(words(tmp_path / "p", inpainter)) == 0
    said = refusal(*words(tmp_path / "p", inpainter, **change))
    assert f"holds other pairs ({next(iter(change))} " in said


# ---- a student of them
def test_a_student_of_one_step_fills_a_hole_by_what_is_kept(tmp_path, seed):
    """Change what is kept and the hole changes; a network that is told nothing of it makes the same hole."""
    digits, teacher, student = load_dataset("digits"), tmp_path / "teacher", tmp_path / "student"
    start = save(tmp_path / "start", Spec(DIGITS, null_label=True, provenance={"data": "digits"}))
    quick = {"batch": 16, "watch": 0, "learning_rate": 5e-3, "seed": seed}
    commands.train_teacher("inpaint", "digits", teacher, start=start, steps=50, **quick)
    setting = {"count": 128, "steps": 2, "guidance": 1.0, "seed": 9}
    commands.make_pairs(teacher, tmp_path / "pairs", **setting, **MASKED)
    commands.distil("reflow", teacher, tmp_path / "pairs", student, steps=60, **quick)
    spec = checkpoint.load_spec(student)
    assert spec.network == SEEING
    assert spec.provenance["pairs"]["masks"] == "mixed"

    left = np.where(mask_files.draw("left", 16, 16, 1)[0, 0] == 1, 255, 0).astype(np.uint8)
    picture = np.rint((digits.images[0, 0].numpy() + 1) * 127.5).astype(np.uint8)
    other = np.where(left == 255, picture, 255 - picture)

    def moved(folder) -> float:
        """How far the hole moves as the kept half changes, beside how far it moves as the noise does."""
        flow = load(folder)
        holes = [
            flow.inpaint(given, left, steps=1, seed=drawn, label=3).states[0, 0][left == 255]
            for given, drawn in ((picture, 1), (other, 1), (picture, 2))
        ]
        return float(np.abs(holes[1] - holes[0]).mean() / np.abs(holes[2] - holes[0]).mean())

    assert moved(student) > 0.1, f"seed {seed}"
    blind = network(SEEING, 3)
    with torch.no_grad():
        blind.enter.weight[:, 1:] = 0  # sees the state alone, which at one step is noise
    checkpoint.save(tmp_path / "blind", blind, replace(spec, provenance={}))
    assert moved(tmp_path / "blind") == 0


@pytest.mark.parametrize("name", ["reflow", "grid", "lines", "naive"])
def test_every_student_learns_from_them(name, inpainter, tmp_path):
    commands.make_pairs(inpainter, tmp_path / "p", **SETTING, **MASKED)
    assert (
        main(
            [
                *("distill", name, "--pairs", str(tmp_path / "p"), "--teacher", str(inpainter)),
                *("--out", str(tmp_path / "s"), "--steps", "2", "--batch", "4", "--watch", "2", "--region", "0.2"),
            ]
        )
        == 0
    )
    spec = checkpoint.load_spec(tmp_path / "s")
    assert spec.network == SEEING
    assert spec.provenance["options"]["region"] == 0.2
    logged = (tmp_path / "s.log" / "log.jsonl").read_text()
    assert "frechet-4-steps" in logged
    assert commands.student(name, pairs=tmp_path / "p").network.sees_mask


# ---- what is refused
def test_a_mistake_is_one_sentence(inpainter, tmp_path, refusal):
    out, blind = tmp_path / "p", save(tmp_path / "blind", Spec(DIGITS))
    points = save(tmp_path / "points", Spec(POINTS))
    other = save(tmp_path / "other", Spec(replace(UNET, extra=2)))
    for source, more, expected in (
        (inpainter, {"masks": "stars"}, "masks of the pairs is stars; expected one of centre, boxes"),
        (inpainter, {"masked": 1.5}, "masked of the pairs is 1.5; expected 0 to 1"),
        (inpainter, {"masked": "nan"}, "masked of the pairs is nan; expected 0 to 1"),
        (inpainter, {"data": "nowhere"}, "data is 'nowhere'; expected one of digits"),
        (inpainter, {"data": "checkerboard"}, "data 'checkerboard' has shape (2,) and 0 classes, the teacher's"),
        (other, {}, "data 'digits' has shape (1, 16, 16) and 10 classes, the teacher's network has (1, 8, 8) and 3"),
        (blind, {}, "masks are named, and the teacher's network sees none; expected what `pyflow train inpaint`"),
        (points, {}, "masks are named, and the teacher's network sees none"),
    ):
        assert expected in refusal(*words(out, source, **more))
        assert not out.exists()
    for more in ("--masked 0.5", "--data digits"):
        said = refusal("pairs", inpainter, "--out", out, "--count", 4, *more.split())
        assert "expected none without masks: name their kind, --masks mixed" in said
    assert "--data is missing" in refusal("pairs", inpainter, "--out", out, "--count", 4, "--masks", "mixed")
    assert not out.exists()


def test_masks_and_the_network_that_sees_them_belong_together(inpainter, tmp_path, refusal):
    blind = save(tmp_path / "blind", Spec(DIGITS))
    commands.make_pairs(inpainter, tmp_path / "masked", **SETTING, **MASKED)
    commands.make_pairs(inpainter, tmp_path / "plain", **SETTING)
    for teacher, made, expected in (
        (blind, "masked", "are 'mixed', and the student's network sees none"),
        (inpainter, "plain", "are none, and the student's network sees one"),
    ):
        folder = tmp_path / made
        said = refusal("distill", "reflow", "--teacher", teacher, "--pairs", folder, "--out", tmp_path / "s")
        assert expected in said
        assert "`pyflow pairs --masks`" in said
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"masks": None}, "expected them with masked and data"),
        ({"data": None}, "expected them with masked and data"),
        ({"shape": (2,)}, "expected none: points have no holes"),
        ({"masks": "stars"}, "expected one of centre"),
        ({"masked": -0.1}, "expected 0 to 1, a share of the pairs"),
    ],
    ids=str,
)
def test_a_spec_that_says_half_is_refused(change, expected):
    with pytest.raises(InvalidInput, match=expected):
        replace(SPEC, **change)
