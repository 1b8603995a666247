"""How alike pictures are: against loops that were written apart, on the whole picture and in its hole."""

import math

import numpy as np
import pytest

from pyflow import masks
from pyflow.errors import InvalidInput
from pyflow.similarity import decibels, mse, nmse, psnr, ssim, ssim_every_pixel

SHAPES = [(3, 16, 13, 3), (2, 32, 32, 1), (2, 11, 11, 1), (2, 8, 9, 3)]


def pictures(rng, shape) -> tuple[np.ndarray, np.ndarray]:
    """Smooth pictures with noise in them, and others near them."""
    count, height, width, channels = shape
    y, x = np.mgrid[:height, :width] / 5
    turn = rng.uniform(0, 6, (count, 1, 1, channels))
    real = 128 + 80 * np.sin(y[..., None] + turn) * np.cos(x[..., None]) + rng.normal(0, 10, shape)
    made = real * rng.uniform(0.6, 1.1) + rng.normal(0, 20, shape)
    return tuple(np.clip(values, 0, 255).astype(np.uint8) for values in (real, made))


def windows_by_hand(real, made, y, x, reach) -> float:
    """The similarity around one pixel of one channel, mirrored at the borders, by its definition."""
    total, sums = 0.0, np.zeros(5)
    height, width = real.shape
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = math.exp(-(dy * dy + dx * dx) / 4.5)
            row, column = y + dy, x + dx
            row = -row - 1 if row < 0 else 2 * height - 1 - row if row >= height else row
            column = -column - 1 if column < 0 else 2 * width - 1 - column if column >= width else column
            a, b = float(real[row, column]), float(made[row, column])
            total += weight
            sums += weight * np.array([a, b, a * a, b * b, a * b])
    a, b, aa, bb, ab = sums / total
    c1, c2 = 6.5025, 58.5225
    return (2 * a * b + c1) * (2 * (ab - a * b) + c2) / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))


def ssim_by_hand(real, made, hole=None) -> float:
    height, width, channels = real.shape
    fitting = [odd for odd in (11, 9, 7, 5, 3, 1) if odd <= min(height, width)]
    reach = fitting[0] // 2
    found = []
    for y in range(height):
        for x in range(width):
            if hole is None and not (reach <= y < height - reach and reach <= x < width - reach):
                continue
            if hole is not None and not hole[y, x]:
                continue
            found += [windows_by_hand(real[..., c], made[..., c], y, x, reach) for c in range(channels)]
    return sum(found) / len(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_structural_similarity_is_that_of_a_slow_loop(rng, shape):
    real, made = pictures(rng, shape)
    np.testing.assert_allclose(ssim(real, made), [ssim_by_hand(*pair) for pair in zip(real, made)], rtol=1e-9)
    hole = masks.draw("mixed", *shape[1:3], shape[0], seed=int(rng.integers(2**32)))
    expected = [ssim_by_hand(*of_picture) for of_picture in zip(real, made, hole[:, 0])]
    np.testing.assert_allclose(ssim(real, made, hole), expected, rtol=1e-9)
    expected = [ssim_by_hand(*pair, np.full(shape[1:3], True)) for pair in zip(real, made)]
    np.testing.assert_allclose(ssim_every_pixel(real, made), expected, rtol=1e-9)


def test_structural_similarity_is_that_of_scikit_image(rng):
    metrics = pytest.importorskip("skimage.metrics", reason="needs pip install scikit-image")
    real, made = pictures(rng, (3, 24, 40, 3))
    setting = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [metrics.structural_similarity(*pair, channel_axis=-1, **setting) for pair in zip(real, made)]
    np.testing.assert_allclose(ssim(real, made), expected, rtol=1e-6)


def test_a_large_set_is_cut_and_put_together_again(rng, monkeypatch):
    real, made = pictures(rng, (9, 16, 16, 3))
    hole = masks.draw("boxes", 16, 16, 9)
    at_once = ssim(real, made), ssim(real, made, hole)
    monkeypatch.setattr("pyflow.similarity._CALL", 2 * 16 * 16 * 3)
    np.testing.assert_allclose((ssim(real, made), ssim(real, made, hole)), at_once, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_those_of_a_slow_loop(rng, shape):
    real, made = pictures(rng, shape)
    hole = masks.draw("mixed", *shape[1:3], shape[0], seed=int(rng.integers(2**32)))
    for i, (a, b, inside) in enumerate(zip(real.astype(float), made.astype(float), hole[:, 0] == 1)):
        for found, off in (
            ([f(real, made)[i] for f in (mse, nmse, psnr)], (a - b) ** 2),
            ([f(real, made, hole)[i] for f in (mse, nmse, psnr)], ((a - b) ** 2)[inside]),
        ):
            error = sum(off.ravel()) / off.size
            power = sum((a**2).ravel()) / a.size
            assert found == pytest.approx([error, error / power, 20 * math.log10(255 / math.sqrt(error))], rel=1e-6)


def test_the_hole_alone_is_looked_at(rng):
    """What is outside is never read, and the whole picture is not the hole."""
    real, made = pictures(rng, (4, 32, 32, 3))
    hole = masks.draw("centre", 32, 32, 4)
    outside = np.broadcast_to(hole.transpose(0, 2, 3, 1) == 0, real.shape)
    kept = np.where(outside, real, made)
    for measure in (mse, nmse, psnr):
        np.testing.assert_array_equal(measure(real, kept, hole), measure(real, made, hole))
    assert mse(real, kept) == pytest.approx(mse(real, kept, hole) * 256 / 1024)
    assert (ssim(real, kept) > ssim(real, kept, hole) + 0.05).all()
    one = hole[0]
    for measure in (mse, nmse, psnr, ssim):
        np.testing.assert_array_equal(measure(real, made, one), measure(real, made, hole))


def test_a_hole_in_the_middle_weighs_its_share_where_every_pixel_has_a_window(rng):
    """White noise in the centre of a quarter: windows inside the picture are 22x22, of which 16x16 lie in the hole."""
    real = rng.integers(256, size=(20, 32, 32, 1), dtype=np.uint8)
    made = real.copy()
    made[:, 8:24, 8:24] = rng.integers(256, size=(20, 16, 16, 1), dtype=np.uint8)
    inside, every = ssim(real, made).mean(), ssim_every_pixel(real, made).mean()
    assert inside == pytest.approx(1 - 256 / 484, abs=0.05)
    assert every == pytest.approx(1 - 256 / 1024, abs=0.05)


def test_equal_pictures(rng):
    real, _ = pictures(rng, (2, 16, 16, 3))
    hole = masks.draw("boxes", 16, 16, 2)
    for mask in (None, hole):
        assert (nmse(real, real, mask) == 0).all()
        assert (psnr(real, real, mask) == np.inf).all()
        np.testing.assert_allclose(ssim(real, real, mask), 1, rtol=1e-12)


def test_black_pictures():
    black, white = np.zeros((2, 16, 16, 1), np.uint8), np.full((2, 16, 16, 1), 255, np.uint8)
    np.testing.assert_array_equal(nmse(black, black), [0, 0])
    np.testing.assert_array_equal(nmse(black, white), [np.inf, np.inf])
    np.testing.assert_array_equal(psnr(black, white), [0, 0])
    np.testing.assert_allclose(ssim(black, white), 6.5025 / (255**2 + 6.5025))


def test_a_hole_that_is_black_is_measured_by_its_picture():
    real, made = np.zeros((1, 16, 16, 1), np.uint8), np.zeros((1, 16, 16, 1), np.uint8)
    real[:, :8] = made[:, :8] = 100
    made[:, 8:] = 50
    assert nmse(real, made, masks.draw("bottom", 16, 16, 1)) == pytest.approx(50**2 / (100**2 / 2))


def test_the_error_of_a_set_is_finite_and_no_flattery(rng):
    real, made = pictures(rng, (6, 16, 16, 3))
    off = mse(real, made)
    assert decibels(off.mean()) <= psnr(real, made).mean()
    made[0] = real[0]
    assert np.isfinite(decibels(mse(real, made).mean()))


def test_no_pictures_have_no_figures():
    none = np.zeros((0, 16, 16, 3), np.uint8)
    assert all(measure(none, none).shape == (0,) for measure in (mse, nmse, psnr, ssim))


GOOD = np.zeros((2, 8, 8, 1), np.uint8)
BAD = {
    "floats": ((GOOD / 1, GOOD), "real pictures are float64"),
    "no channels": ((GOOD, GOOD[..., 0]), r"made pictures are uint8 \(2, 8, 8\); expected uint8 \(N, height"),
    "other sizes": ((GOOD, GOOD[:, 1:]), r"shape \(2, 8, 8, 1\), those made \(2, 7, 8, 1\); expected the same"),
    "a mask of another size": ((GOOD, GOOD, np.ones((2, 1, 8, 9))), r"shape \(2, 1, 8, 9\); expected \(2, 1, 8, 8\)"),
    "a mask of other pictures": ((GOOD, GOOD, np.ones((3, 1, 8, 8))), r"or \(1, 8, 8\) for all pictures"),
    "a grey mask": ((GOOD, GOOD, np.full((1, 8, 8), 0.5)), r"values such as \[0.5\]; expected 0 and 1"),
    "a NaN": ((GOOD, GOOD, np.full((1, 8, 8), np.nan)), r"values such as \[nan\]"),
    "no hole": ((GOOD, GOOD, np.arange(2)[::-1, None, None, None] * np.ones((2, 1, 8, 8))), "mask 1 is 0 everywhere"),
}


def test_a_window_around_every_pixel_needs_pictures_too():
    with pytest.raises(InvalidInput, match="real pictures are float64"):
        ssim_every_pixel(GOOD / 1, GOOD)


@pytest.mark.parametrize("measure", [mse, nmse, psnr, ssim])
@pytest.mark.parametrize(("given", "sentence"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_compared_is_refused(measure, given, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        measure(*given)
