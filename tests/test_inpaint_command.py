"""`pyflow masks` and `pyflow inpaint`: pictures as people have them, and one sentence for those that do not fit."""

import numpy as np
import pytest

from pyflow import masks
from pyflow.cli import main
from pyflow.errors import InvalidInput
from pyflow.pictures import hidden, open_image, read_image, read_mask

pil = pytest.importorskip("PIL.Image")


def saved(folder, name: str, values: np.ndarray, mode: str | None = None):
    image = pil.fromarray(values)
    (image.convert(mode) if mode else image).save(folder / name)
    return folder / name


def cells(sheet: np.ndarray, columns: int, side: int) -> list[np.ndarray]:
    return [
        sheet[top : top + side, left : left + side]
        for top in range(1, sheet.shape[0] - 1, side + 1)
        for left in range(sheet.shape[1] - columns * (side + 1), sheet.shape[1] - 1, side + 1)
    ]


# ---- masks
def test_the_sheet_of_masks_holds_those_that_are_drawn(tmp_path, capsys, rng):
    seed, out = int(rng.integers(2**32)), tmp_path / "masks.png"
    size = ["--size", "24", "--count", "5", "--scale", "1"]
    assert main(["masks", "--out", str(out), "--seed", str(seed), *size]) == 0
    told, kinds = capsys.readouterr().out.partition("generated\n")[2], [*masks.KINDS, *masks.GROUPS]
    assert [line.split()[0] for line in told.splitlines()[: len(kinds)]] == kinds
    expected = np.concatenate([masks.draw(kind, 24, 24, 5, seed=seed)[:, 0] for kind in kinds])
    found = cells(np.asarray(pil.open(out)), 5, 24)
    np.testing.assert_array_equal(found, 255 * expected, err_msg=f"seed {seed}")
    assert main(["masks", "--out", str(out), "--seed", str(seed), "--kind", "boxes", *size]) == 0
    np.testing.assert_array_equal(
        cells(np.asarray(pil.open(out)), 5, 24), 255 * masks.draw("boxes", 24, 24, 5, seed=seed)[:, 0]
    )


def test_a_mask_of_ones_own_is_shown_beside_the_others(tmp_path, capsys, rng):
    own = np.where(rng.random((16, 16)) < 0.3, 255, 0).astype(np.uint8)
    saved(tmp_path, "own.png", own)
    words = ["--own", str(tmp_path / "own.png"), "--out", str(tmp_path / "masks.png"), "--scale", "1", "--count", "2"]
    assert main(["masks", *words]) == 0
    assert f"own {(own == 255).mean():5.0%}" in capsys.readouterr().out
    found = cells(np.asarray(pil.open(tmp_path / "masks.png")), 2, 16)
    assert len(found) == 2 * (len(masks.KINDS) + len(masks.GROUPS) + 1)
    np.testing.assert_array_equal(found[-2:], [own, own])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--kind circle", "kind is 'circle'; expected one of centre, boxes"),
        ("--size 7", "height is 7; expected 8 to 4096"),
        ("--seed -1", "of seed -1 are asked for; expected seeds"),
        ("--count 0", "count is 0; expected 1 to"),
        ("--size 4096 --count 1024", "9216 pictures of 4096x4096 at --scale 2 make a sheet of 618,475,290,624 pixels"),
        ("--kind boxes --size 4096 --count 1 --scale 3", "150,994,944 pixels; expected 67,108,864 at most: lower"),
        ("--scale 65", "scale is 65; expected 1 to 64"),
        ("--out masks.txt", "--out is 'masks.txt'; expected a name that ends in .png"),
        ("--out no/masks.png", "expected a file in a folder that is there"),
        ("--own missing.png", "missing.png"),
    ],
)
def test_masks_that_cannot_be_are_refused(clean_refusal, words, sentence):
    assert sentence in clean_refusal("masks", *words.split())


def test_a_mask_of_ones_own_that_is_none_is_refused(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, "grey.png", np.full((16, 16), 90, np.uint8))
    assert "values such as [90]; expected only 0 (keep) and 255 (repaint)" in refusal("masks", "--own", "grey.png")
    saved(tmp_path, "own.png", np.zeros((16, 24), np.uint8))
    assert "--size is 8, the own mask has (16, 24) pixels" in refusal("masks", "--own", "own.png", "--size", "8")
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png cannot be read (cannot identify" in refusal("masks", "--own", "text.png")


# ---- a user's pictures
def test_sixteen_bits_are_made_eight_without_clipping(tmp_path, rng):
    deep = rng.integers(2**16, size=(8, 8)).astype(np.uint16)
    opened = open_image(saved(tmp_path, "deep.png", deep))
    assert opened.mode.startswith("I")
    expected = np.floor(deep / 65535 * 255 + 0.5)
    np.testing.assert_array_equal(read_image(opened, (1, 8, 8))[..., 0], expected)
    np.testing.assert_array_equal(read_image(opened, (3, 8, 8)), np.repeat(expected[..., None], 3, -1))
    mask = np.where(rng.random((8, 8)) < 0.5, 65535, 0).astype(np.uint16)
    np.testing.assert_array_equal(read_mask(open_image(saved(tmp_path, "m.png", mask)), (1, 8, 8))[0], mask == 65535)


def test_grey_colours_palettes_and_opaque_pictures_are_converted(tmp_path, rng):
    colours = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
    opaque = np.concatenate([colours, np.full((8, 8, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(open_image(saved(tmp_path, "a.png", opaque)), (3, 8, 8)), colours)
    grey = open_image(saved(tmp_path, "b.png", colours, "L"))
    np.testing.assert_array_equal(read_image(grey, (3, 8, 8)), np.asarray(grey)[..., None].repeat(3, -1))
    np.testing.assert_array_equal(read_image(pil.fromarray(colours), (1, 8, 8))[..., 0], np.asarray(grey))
    palette = open_image(saved(tmp_path, "c.png", np.tile(np.asarray(grey)[:1], (8, 1)), "P"))
    np.testing.assert_array_equal(read_image(palette, (1, 8, 8))[..., 0], np.tile(np.asarray(grey)[:1], (8, 1)))


def test_a_picture_is_turned_as_its_camera_says(tmp_path, rng):
    upright = rng.integers(256, size=(8, 12), dtype=np.uint8)
    tags = pil.Exif()
    tags[274] = 8  # lies on its right side
    pil.fromarray(np.rot90(upright, -1)).save(tmp_path / "turned.png", exif=tags)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "turned.png")), upright)


def test_a_picture_that_hides_something_is_refused(rng):
    transparent = rng.integers(255, size=(8, 8, 4), dtype=np.uint8)
    for read, name in ((read_image, "image"), (read_mask, "mask_image")):
        with pytest.raises(InvalidInput, match=f"^{name} is transparent in places; expected an opaque picture"):
            read(pil.fromarray(transparent), (3, 8, 8))
        with pytest.raises(InvalidInput, match=f"^{name} has mode F, 32 bits a pixel; expected 8 or 16"):
            read(pil.fromarray(rng.random((8, 8), np.float32)), (3, 8, 8))


def test_a_hole_is_shown_grey(rng):
    images = rng.integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    drawn = masks.draw("mixed", 16, 16, 3)
    shown = hidden(images, drawn)
    hole = np.broadcast_to(drawn.transpose(0, 2, 3, 1) == 1, images.shape)
    assert (shown[hole] == 128).all()
    np.testing.assert_array_equal(shown[~hole], images[~hole])
    np.testing.assert_array_equal(hidden(images[1], drawn[1]), shown[1])


# ---- inpaint
@pytest.fixture
def painted(tmp_path, rng, monkeypatch):
    """The folder of a picture, a mask, and the two as arrays."""
    monkeypatch.chdir(tmp_path)
    image = rng.integers(256, size=(8, 8), dtype=np.uint8)
    white = rng.random((8, 8)) < 0.5
    saved(tmp_path, "image.png", image)
    saved(tmp_path, "mask.png", np.where(white, 255, 0).astype(np.uint8))
    return image, white


def test_inpaint_shows_the_original_the_hole_and_the_results(tiny_checkpoint, tmp_path, capsys, painted):
    image, white = painted
    words = "--image image.png --mask mask.png --label 1 --steps 4 --solver ddpm --resamples 2 --count 3 --scale 1"
    assert main(["inpaint", str(tiny_checkpoint), *words.split(), "--seed", "5"]) == 0
    told = capsys.readouterr().out
    assert "original, masked, 3 results of 7 calls" in told
    assert f"{white.mean():.0%} repainted: inpainted.png" in told
    found = cells(np.asarray(pil.open("inpainted.png")), 5, 8)
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], np.where(white, 128, image))
    import pyflow

    flow, asked = pyflow.load(tiny_checkpoint), {"steps": 4, "solver": "ddpm", "resamples": 2, "label": 1, "seed": 5}
    np.testing.assert_array_equal(found[2:], flow.inpaint(image, white, batch=3, **asked).images[..., 0])


def test_a_mask_may_be_named_by_its_kind(tiny_checkpoint, painted):
    words = "--image image.png --mask boxes --steps 1 --count 1 --scale 1 --seed 9 --out named.png"
    assert main(["inpaint", str(tiny_checkpoint), *words.split()]) == 0
    shown = cells(np.asarray(pil.open("named.png")), 3, 8)[1]
    np.testing.assert_array_equal(shown, np.where(masks.draw("boxes", 8, 8, 1, seed=9)[0, 0] == 1, 128, painted[0]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--mask circle", "--mask is 'circle'; expected a file that is there, or one of centre, boxes"),
        ("--mask image.png", "mask_image has dtype uint8 and values such as"),
        ("--mask wide.png", "mask_image has shape (8, 9); expected (8, 8)"),
        ("--mask centre --image wide.png", "image has shape (8, 9, 1); expected (8, 8, 1): resize it first"),
        ("--mask centre --image missing.png", "missing.png"),
        ("--mask centre --steps 0", "steps is 0; expected 1 to"),
        ("--mask centre --jump -3", "--jump is -3 and --resamples 1, which passes no stretch again; expected"),
        ("--mask centre --count 1024 --scale 64", "1026 pictures of 8x8 at --scale 64 make a sheet of"),
        ("--mask centre --count 0", "count is 0; expected 1 to"),
        ("--mask centre --resamples 2 --steps 1", "jump is 1 of 1 steps"),
        ("--mask centre --resamples 2 --solver heun", "a resampling jump expected one of euler"),
        ("--mask centre --out inpainted.gif", "--out is 'inpainted.gif'; expected a name that ends in"),
    ],
)
def test_what_cannot_be_inpainted_is_refused(tiny_checkpoint, tmp_path, refusal, painted, words, sentence):
    saved(tmp_path, "wide.png", np.zeros((8, 9), np.uint8))
    image = [] if "--image" in words else ["--image", "image.png"]
    assert sentence in refusal("inpaint", tiny_checkpoint, *image, *words.split())
    assert not (tmp_path / "inpainted.png").exists()


def test_points_are_not_inpainted(refusal, tmp_path, painted):
    from tiny import POINTS, save

    from pyflow.spec import Spec

    folder = save(tmp_path / "points", Spec(POINTS))
    assert "points of shape (2,); inpainting needs" in refusal(
        "inpaint", folder, "--image", "image.png", "--mask", "centre"
    )
