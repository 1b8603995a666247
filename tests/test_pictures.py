"""Pictures at the border: every value goes in and comes out, sheets are laid out as they say."""

import numpy as np
import pytest

from pyflow.errors import InvalidInput
from pyflow.native import to_uint8
from pyflow.pictures import OUTPUT_TYPES, Output, grid_of, model_values, read_image, read_mask

pil = pytest.importorskip("PIL.Image")


def output_of(images: np.ndarray) -> Output:
    """The output whose pictures are these."""
    return Output(np.stack([model_values(image) for image in images]), np.zeros(1), np.zeros(1))


def test_all_256_values_come_back():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    values = model_values(image)
    assert values.dtype == np.float32
    assert values.shape == (3, 16, 16)
    assert (values.min(), values.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(values[None])[0], image)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_output_gives_its_pictures_in_every_form(rng, channels):
    images = rng.integers(256, size=(5, 6, 4, channels), dtype=np.uint8)
    output = output_of(images)
    np.testing.assert_array_equal(output.images, images)
    for made, image in zip(output.pil(), images):
        assert made.mode == {1: "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(made).reshape(image.shape), image)
    np.testing.assert_array_equal(np.rint(output.torch().numpy() * 255).transpose(0, 2, 3, 1), images)
    assert output.torch().min() >= 0
    assert output.torch().max() <= 1
    for kind in OUTPUT_TYPES:
        assert len(output.of_type(kind)) == 5


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("columns", [None, 1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_a_grid_holds_every_picture_at_its_place(rng, count, columns, scale):
    images = rng.integers(256, size=(count, 6, 4, 3), dtype=np.uint8)
    sheet = np.asarray(output_of(images).grid(columns, scale))
    wide = columns or {1: 1, 2: 2, 5: 3, 9: 3}[count]
    rows = -(-count // wide)
    assert sheet.shape == ((rows * 7 + 1) * scale, (wide * 5 + 1) * scale, 3)
    assert (sheet == sheet[::scale, ::scale].repeat(scale, 0).repeat(scale, 1)).all()
    small = sheet[::scale, ::scale]
    for index, image in enumerate(images):
        top, left = index // wide * 7 + 1, index % wide * 5 + 1
        np.testing.assert_array_equal(small[top : top + 6, left : left + 4], image)
    assert (small[0] == 128).all()


def test_a_grid_of_grey_pictures_is_grey(rng):
    assert grid_of(rng.integers(256, size=(4, 8, 8, 1), dtype=np.uint8), 2).mode == "L"


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pictures_of_other_modes_are_converted(rng, mode, channels):
    colours = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
    for given in ("L", "RGB", "RGBA", "P", "1"):
        image = pil.fromarray(colours).convert(given)
        expected = np.asarray(image.convert(mode)).reshape(8, 8, channels)
        np.testing.assert_array_equal(read_image(image, (channels, 8, 8)), expected)


def test_white_is_one_and_black_is_nought(rng):
    white = rng.random((8, 4)) < 0.5
    mask = read_mask(white, (3, 8, 4))
    assert (mask.shape, mask.dtype) == ((1, 8, 4), np.float32)
    np.testing.assert_array_equal(mask[0] == 1, white)
    np.testing.assert_array_equal(mask[0] == 0, ~white)
    np.testing.assert_array_equal(read_mask(np.where(white, 255, 0).astype(np.uint8), (3, 8, 4)), mask)


def test_a_jpegs_grey_edge_is_refused(rng):
    """A mask that was saved as a JPEG is not black and white any more."""
    with pytest.raises(InvalidInput, match="expected only 0"):
        read_mask(pil.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)), (1, 8, 8))


def test_values_outside_are_clamped_and_nan_is_refused():
    states = np.array([-7.0, -1.0, 1.0, 7.0], np.float32).reshape(1, 1, 2, 2)
    assert Output(states, np.zeros(1), np.zeros(1)).images.ravel().tolist() == [0, 0, 255, 255]
    states[0, 0, 0, 0] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        _ = Output(states, np.zeros(1), np.zeros(1)).images
