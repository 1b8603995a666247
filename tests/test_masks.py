"""Masks: they belong to their pictures, leave something to see and something to do, and look as their names say."""

import hashlib
import time

import numpy as np
import pytest

from pyflow import masks
from pyflow.errors import InvalidInput
from pyflow.masks import GROUPS, HALVES, KINDS, MOST, draw, told
from pyflow.noise import PICTURE_LIMIT, SEED_LIMIT

ALL = [*KINDS, *GROUPS]


@pytest.fixture
def seed(rng) -> int:
    return int(rng.integers(SEED_LIMIT))


def side(rng) -> int:
    return int(rng.integers(masks.SMALLEST, 49))


@pytest.mark.parametrize("kind", ALL)
def test_a_mask_belongs_to_its_picture(rng, seed, kind):
    height, width, first = side(rng), side(rng), int(rng.integers(PICTURE_LIMIT - 8))
    batch = draw(kind, height, width, 8, seed=seed, first=first)
    assert batch.shape == (8, 1, height, width)
    assert batch.dtype == np.float32
    for index in (0, 3, 7):
        np.testing.assert_array_equal(draw(kind, height, width, 1, seed=seed, first=first + index)[0], batch[index])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", [(8, 8), (9, 31), (32, 32)])
def test_a_hole_is_neither_empty_nor_everything(kind, size, seed):
    drawn = draw(kind, *size, 4000, seed=seed)
    assert set(np.unique(drawn)) == {0, 1}
    share = drawn.mean(axis=(1, 2, 3))
    assert share.min() > 0.02, f"seed {seed}"
    assert share.max() <= MOST, f"seed {seed}"
    assert 0.05 < share.mean() < 0.6, f"seed {seed}"


@pytest.mark.parametrize("kind", ["boxes", "irregular", "mixed"])
def test_other_seeds_and_pictures_have_other_masks(kind, seed):
    drawn = draw(kind, 32, 32, 200, seed=seed).reshape(200, -1)
    assert len(np.unique(drawn, axis=0)) >= (190 if kind != "mixed" else 90)
    assert (draw(kind, 32, 32, 200, seed=seed ^ 1).reshape(200, -1) != drawn).any(axis=1).mean() > 0.8


def test_the_centre_is_a_square_in_the_middle():
    expected = np.zeros((16, 24))
    expected[4:12, 8:16] = 1
    np.testing.assert_array_equal(draw("centre", 16, 24, 2), np.tile(expected, (2, 1, 1, 1)))


def test_a_half_is_named_after_what_is_generated():
    for kind, hole in zip(HALVES, (np.s_[:, :5], np.s_[:, 6:], np.s_[:4], np.s_[5:]), strict=True):
        expected = np.zeros((9, 11))
        expected[hole] = 1
        np.testing.assert_array_equal(draw(kind, 9, 11, 1)[0, 0], expected, err_msg=kind)


def test_boxes_are_unions_of_rectangles_wherever_they_fit(seed):
    """A pixel of a hole lies in a rectangle of the hole of the least size; every pixel is in some hole."""
    drawn = draw("boxes", 16, 16, 3000, seed=seed)[:, 0].astype(bool)
    windows = np.lib.stride_tricks.sliding_window_view(drawn, (4, 4), axis=(1, 2)).all(axis=(3, 4))
    rebuilt = np.zeros_like(drawn)
    for top in range(13):
        for left in range(13):
            rebuilt[:, top : top + 4, left : left + 4] |= windows[:, top, left, None, None]
    np.testing.assert_array_equal(rebuilt, drawn)
    assert drawn.mean(axis=0).min() > 0.005, f"seed {seed}"


def strokes_by_hand(drawn: np.ndarray, side: int) -> np.ndarray:
    """One picture's mask from its random numbers, point by point with sines of real angles."""
    wanted, radius = 2 + drawn[-2], max(1, side // 20) + drawn[-1]

    def painted(count: int) -> np.ndarray:
        hole = np.zeros((side, side), bool)
        for row in drawn[:-2].reshape(masks.STROKES, -1)[:count]:
            y, x, way, more, *turns = (int(number) for number in row)
            y, x, angle, before = y * 256, x * 256, way, -1
            for point in range(side - side // 2 + more):
                if (bend := point * masks.BENDS // side) != before:
                    angle, before = angle + turns[bend] - 8, bend
                y += round(256 * np.sin(angle * np.pi / 32))
                x += round(256 * np.cos(angle * np.pi / 32))
                at = [min(value % (512 * side), 512 * side - 1 - value % (512 * side)) // 256 for value in (y, x)]
                for row_ in range(side):
                    for column in range(side):
                        off = abs(row_ - at[0]), abs(column - at[1])
                        # radius crosses and squares by turns: an octagon
                        hole[row_, column] |= max(off) <= radius and sum(off) <= radius + radius // 2
        return hole

    hole = painted(wanted)
    return hole if hole.mean() <= MOST else painted(1)


@pytest.mark.parametrize("side", [8, 20, 32])
def test_strokes_are_those_of_a_brush_that_walks(side, seed):
    numbers = masks._Numbers(seed, np.arange(4, dtype=np.uint32), 1 + KINDS.index("irregular"))
    thickness = max(1, side // 10) - max(1, side // 20) + 1
    one = [side, side, 64, side // 2 + 1, *[16] * masks.BENDS]
    drawn = numbers.below(np.array([*one * masks.STROKES, masks.STROKES - 1, thickness]))
    expected = [strokes_by_hand(of_picture, side) for of_picture in drawn]
    np.testing.assert_array_equal(draw("irregular", side, side, 4, seed=seed)[:, 0], expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_takes_its_parts_in_turn_by_chance(group, seed):
    drawn = draw(group, 16, 16, 2000, seed=seed)
    parts = np.stack([draw(part, 16, 16, 2000, seed=seed) for part in GROUPS[group]])
    same = (parts == drawn).all(axis=(2, 3, 4))
    assert same.any(axis=0).all(), f"seed {seed}: a mask of no part"
    assert abs(same.mean(axis=1) - 1 / len(parts)).max() < 0.05, f"seed {seed}"


@pytest.mark.parametrize(
    ("kind", "hashed"),
    [("boxes", "0ac398d5cd3003a6"), ("irregular", "0cb85dd14a0979ff"), ("mixed", "7cad27e2c96f4411")],
)
def test_pairs_of_last_year_find_their_masks_again(kind, hashed):
    drawn = draw(kind, 32, 32, 16, seed=7, first=5).astype(np.uint8)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == hashed


def test_ten_thousand_masks_are_drawn_at_once_and_not_one_by_one():
    """A loop over pictures takes some ten seconds of the processor."""

    def seconds(kind: str) -> float:
        began = time.process_time()
        draw(kind, 32, 32, 10_000)
        return time.process_time() - began

    for kind in ALL:
        assert min(seconds(kind) for _ in range(3)) < 3, kind


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_what_is_told_is_the_kept_pixels_and_the_mask(rng, package):
    module = pytest.importorskip(package)
    image, other = rng.standard_normal((2, 4, 3, 8, 8), np.float32)
    mask = draw("mixed", 8, 8, 4)
    hidden = np.where(mask == 1, other, image)
    found, of_hidden = (
        np.asarray(told(*(module.asarray(value) for value in (picture, mask)))) for picture in (image, hidden)
    )
    assert found.shape == (4, 4, 8, 8)
    np.testing.assert_array_equal(found[:, :3], np.where(mask == 1, 0, image))
    np.testing.assert_array_equal(found[:, 3:], mask)
    np.testing.assert_array_equal(of_hidden, found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("circle", 8, 8, 1), "kind is 'circle'; expected one of centre, boxes, .*, half, mixed"),
        (("boxes", 7, 8, 1), "height is 7; expected 8 to 4096 pixels"),
        (("boxes", 8, 5000, 1), "width is 5000; expected 8 to 4096"),
        (("boxes", 8, 8, -1), "masks 0 to -2 of seed 0 are asked for"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        draw(*arguments)


@pytest.mark.parametrize("where", [{"seed": -1}, {"seed": 2**32}, {"first": -1}, {"first": 2**32 - 1}])
def test_numbers_beyond_the_noise_are_refused(where):
    with pytest.raises(InvalidInput, match=r"expected seeds and numbers in 0\.\.2\*\*32-1"):
        draw("boxes", 8, 8, 2, **where)


def test_no_masks_at_all_are_none():
    assert all(draw(kind, 8, 8, 0).shape == (0, 1, 8, 8) for kind in ALL)
