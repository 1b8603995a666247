"""Loading: an engine or a checkpoint becomes a flow, and what can't is named."""

import numpy as np
import pytest
import torch
from tiny import POINTS, save

import pyflow
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput
from pyflow.spec import Spec


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InvalidArtefact, match=r"nowhere does not exist; expected an engine or checkpoint folder"):
        pyflow.load(tmp_path / "nowhere")
    with pytest.raises(InvalidArtefact, match=r"holds neither manifest\.json .* nor spec\.json"):
        pyflow.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InvalidArtefact, match="holds neither"):
        pyflow.load(tmp_path / "model.onnx")
    for name, sentence in (("manifest.json", "manifest"), ("spec.json", "spec")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for content in ("", "{}", "[]", "5", '{"format": 1}', '{"format": 1, "sha256": {}}'):
            (folder / name).write_text(content)
            with pytest.raises(InvalidArtefact, match=sentence):
                pyflow.load(folder)


@pytest.mark.parametrize("threads", [-1, 1.5, "2", None, 10**6], ids=repr)
def test_wrong_threads_are_named(tiny_engine, tiny_checkpoint, threads):
    before = torch.get_num_threads()
    for source in (tiny_engine, tiny_checkpoint):
        with pytest.raises(InvalidInput, match="threads is"):
            pyflow.load(source, threads=threads)
    assert torch.get_num_threads() == before


def test_the_short_forms_are_load_and_then(tiny_engine, rng):
    engine, seed = pyflow.load(tiny_engine), int(rng.integers(2**32))
    image, mask = rng.integers(256, size=(8, 8), dtype=np.uint8), rng.random((8, 8)) < 0.5
    came = pyflow.sample(str(tiny_engine), 2, steps=2, label=1, seed=seed)
    np.testing.assert_array_equal(came.states, engine.sample(2, steps=2, label=1, seed=seed).states)
    came = pyflow.inpaint(tiny_engine, image, mask, label=1, seed=seed)
    np.testing.assert_array_equal(came.states, engine.inpaint(image, mask, label=1, seed=seed).states)


def test_a_flow_says_what_it_is(tiny_engine, tiny_checkpoint):
    engine, original = pyflow.load(tiny_engine), pyflow.load(tiny_checkpoint)
    assert repr(engine) == "Flow(onnx, shape=(1, 8, 8), classes=3, path='linear')"
    assert repr(original).startswith("Flow(eager, ")
    assert engine.identity != original.identity


def test_a_checkpoint_of_points_samples(tmp_path):
    flow = pyflow.load(save(tmp_path / "points", Spec(POINTS, null_label=True)))
    output = flow.sample(4, steps=2, label=[0, 1, 2, 0], guidance=2.0)
    assert output.states.shape == (4, 2)


WRONG = {
    "backend": ({"backend": "jax"}, InvalidInput, "backend is 'jax'; a checkpoint runs by eager or compile"),
    "device": ({"device": "tpu"}, InvalidInput, "device is 'tpu'; a checkpoint runs on cpu or cuda"),
    "precision": ({"precision": "bf16"}, InvalidInput, "precision is 'bf16'; a checkpoint on cpu runs in fp32"),
}


@pytest.mark.parametrize(("arguments", "refused", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_that_cannot_run_so_says_how_it_can(tiny_checkpoint, arguments, refused, sentence):
    with pytest.raises(refused, match=sentence):
        pyflow.load(tiny_checkpoint, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_checkpoint_without_a_gpu_says_so(tiny_checkpoint):
    with pytest.raises(BackendUnavailable, match="sees no NVIDIA GPU"):
        pyflow.load(tiny_checkpoint, device="cuda")


@pytest.mark.parametrize("arguments", [{"backend": "eager"}, {"precision": "fp32"}], ids=repr)
def test_an_engine_has_its_own_backend(tiny_engine, arguments):
    with pytest.raises(InvalidInput, match="is an engine, which has its own"):
        pyflow.load(tiny_engine, **arguments)


@pytest.mark.slow
def test_a_compiled_checkpoint_makes_the_same_pictures(tmp_path, rng):
    folder, seed = save(tmp_path / "points", Spec(POINTS)), int(rng.integers(2**32))
    flow = pyflow.load(folder, backend="compile")
    flow.warm(3, 2)
    expected = pyflow.load(folder).sample(3, steps=2, label=1, seed=seed).states
    np.testing.assert_allclose(flow.sample(3, steps=2, label=1, seed=seed).states, expected, atol=1e-5)


def test_warming_checks_what_sampling_checks(tiny_engine):
    flow = pyflow.load(tiny_engine)
    flow.warm(2, 3, guidance=2.0, solver="heun")
    for arguments, sentence in (((0,), "batch is 0"), ((1, 0), "steps is 0")):
        with pytest.raises(InvalidInput, match=sentence):
            flow.warm(*arguments)
    with pytest.raises(InvalidInput, match="guidance is -1"):
        flow.warm(1, 1, guidance=-1)
