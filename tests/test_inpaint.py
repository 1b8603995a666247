"""Inpainting: what is kept comes back to the bit, what is white is repainted, and a bad mask or image is named."""

import itertools

import numpy as np
import pytest
from tiny import UNET, flow_of

import pyflow
from pyflow import core, resampling
from pyflow.errors import InvalidInput
from pyflow.sampler import Flow
from pyflow.spec import Spec


@pytest.fixture(scope="module")
def engine(tiny_engine) -> Flow:
    return pyflow.load(tiny_engine, threads=1)


@pytest.fixture
def seed(rng) -> int:
    return int(rng.integers(2**32))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_kept_pixels_come_back_unchanged(engine, rng, seed, steps):
    """All 256 values, at every step count; what is repainted changes."""
    for offset in range(0, 256, 64):
        image = (np.arange(64).reshape(8, 8) + offset).astype(np.uint8)
        white = rng.random((8, 8)) < 0.5
        output = engine.inpaint(image, white, steps=steps, label=1, seed=seed, batch=3)
        assert output.images.shape == (3, 8, 8, 1)
        for made in output.images[..., 0]:
            np.testing.assert_array_equal(made[~white], image[~white], err_msg=f"seed {seed}")
            assert (made[white] != image[white]).mean() > 0.5


@pytest.mark.parametrize("solver", core.SOLVERS)
def test_kept_pixels_come_back_with_every_solver_and_guidance(engine, rng, solver):
    image = rng.integers(256, size=(8, 8), dtype=np.uint8)
    white = rng.random((8, 8)) < 0.5
    made = engine.inpaint(image, white, steps=3, solver=solver, label=1, guidance=3.0).images[0, ..., 0]
    np.testing.assert_array_equal(made[~white], image[~white])


@pytest.mark.parametrize("path", core.PATHS)
def test_kept_pixels_come_back_on_every_path(rng, path):
    image = rng.integers(256, size=(8, 8), dtype=np.uint8)
    white = rng.random((8, 8)) < 0.5
    flow = flow_of(Spec(UNET, path, solver="ddim"))
    made = flow.inpaint(image, white, label=0).images[0, ..., 0]
    np.testing.assert_array_equal(made[~white], image[~white])


def test_white_repaints_everything_and_black_nothing(engine, rng, seed):
    image = rng.integers(256, size=(8, 8), dtype=np.uint8)
    setting = {"steps": 2, "label": 1, "seed": seed}
    nothing = engine.inpaint(image, np.zeros((8, 8), np.uint8), **setting)
    np.testing.assert_array_equal(nothing.images[0, ..., 0], image)
    everything = engine.inpaint(image, np.full((8, 8), 255, np.uint8), **setting)
    np.testing.assert_array_equal(everything.states, engine.sample(1, **setting, solver="renoise").states)


def test_inpaint_renoises_unless_another_solver_is_named(engine, rng, seed):
    known = rng.integers(256, size=(8, 8), dtype=np.uint8), rng.random((8, 8)) < 0.5
    setting = {"steps": 3, "label": 1, "seed": seed}
    made = {solver: engine.inpaint(*known, **setting, solver=solver).states for solver in (None, "renoise", "euler")}
    np.testing.assert_array_equal(made[None], made["renoise"])
    assert np.abs(made["euler"] - made["renoise"]).max() > 1e-3


@pytest.mark.parametrize("backend", ["onnx", "native"])
def test_kept_pixels_come_back_on_every_backend(engine, tiny_checkpoint, tmp_path, rng, seed, backend):
    if backend == "native":
        from pyflow.export import export

        export(tiny_checkpoint, tmp_path / "tiny.engine", backend)
        engine = pyflow.load(tmp_path / "tiny.engine", threads=1)
    assert engine.backend == backend
    reference = pyflow.load(tiny_checkpoint)
    image, white = rng.integers(256, size=(8, 8), dtype=np.uint8), rng.random((8, 8)) < 0.5
    for solver, resamples in itertools.product(resampling.SOLVERS, (1, 2)):
        asked = {"steps": 3, "label": 1, "guidance": 2.0, "seed": seed, "solver": solver, "resamples": resamples}
        made = engine.inpaint(image, white, **asked).images[0, ..., 0].astype(int)
        np.testing.assert_array_equal(made[~white], image[~white], err_msg=f"seed {seed}")
        assert np.abs(made - reference.inpaint(image, white, **asked).images[0, ..., 0]).max() <= 1, f"seed {seed}"


def test_a_mask_may_be_an_array_a_boolean_or_a_picture(engine, rng, seed):
    pil = pytest.importorskip("PIL.Image")
    image = rng.integers(256, size=(8, 8), dtype=np.uint8)
    white = rng.random((8, 8)) < 0.5
    bytes_ = np.where(white, 255, 0).astype(np.uint8)
    masks = [white, bytes_, bytes_[..., None], pil.fromarray(bytes_), pil.fromarray(bytes_).convert("1")]
    masks.append(pil.fromarray(bytes_).convert("RGB"))
    images = [image, image[..., None], pil.fromarray(image)]
    made = [engine.inpaint(one, mask, label=0, seed=seed).images for mask in masks for one in images]
    assert all(np.array_equal(other, made[0]) for other in made)


def test_inpaint_makes_four_steps_unless_told_otherwise(engine):
    image, mask = np.zeros((8, 8), np.uint8), np.ones((8, 8), bool)
    counts = [
        len(engine.inpaint(image, mask, label=0, **asked).row_seconds)
        for asked in ({}, {"steps": 2}, {"num_inference_steps": 3}, {"grid": [0, 0.5, 1]}, {"solver": "heun"})
    ]
    assert counts == [4, 2, 3, 2, 8]


BAD_MASKS = {
    "grey": (np.full((8, 8), 128, np.uint8), r"values such as \[128\]; expected only 0 \(keep\) and 255 \(repaint\)"),
    "nearly white": (np.full((8, 8), 254, np.uint8), r"values such as \[254\]"),
    "ones": (np.ones((8, 8), np.uint8), r"values such as \[1\]"),
    "floats": (np.ones((8, 8), np.float32), "dtype float32"),
    "integers": (np.ones((8, 8), np.int64), "dtype int64"),
    "wrong size": (np.zeros((8, 9), bool), r"has shape \(8, 9\); expected \(8, 8\)"),
    "three channels": (np.zeros((8, 8, 3), bool), r"has shape \(8, 8, 3\); expected \(8, 8\)"),
    "a batch": (np.zeros((2, 8, 8), bool), r"has shape \(2, 8, 8\)"),
    "nothing": (None, r"has shape \(\)"),
    "text": ("mask.png", r"has shape \(\)"),
}


@pytest.mark.parametrize(("mask", "sentence"), BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_a_bad_mask_is_named(engine, no_native, mask, sentence):
    with pytest.raises(InvalidInput, match="mask_image .*" + sentence):
        engine.inpaint(np.zeros((8, 8), np.uint8), mask, label=0)


BAD_IMAGES = {
    "floats": (np.zeros((8, 8)), "dtype float64; expected a PIL image or an array of uint8"),
    "booleans": (np.zeros((8, 8), bool), "dtype bool"),
    "wrong size": (np.zeros((9, 8), np.uint8), r"shape \(9, 8, 1\); expected \(8, 8, 1\): resize it first"),
    "colours": (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\); expected \(8, 8, 1\)"),
    "a batch": (np.zeros((1, 8, 8, 1), np.uint8), r"shape \(1, 8, 8, 1\)"),
    "nothing": (None, "dtype object"),
}


@pytest.mark.parametrize(("image", "sentence"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_named(engine, no_native, image, sentence):
    with pytest.raises(InvalidInput, match="image has " + sentence):
        engine.inpaint(image, np.zeros((8, 8), bool), label=0)
