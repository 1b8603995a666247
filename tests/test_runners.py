"""The three shapes of an engine make the same pictures; a whole sampler makes only those that it holds."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from tiny import POINTS, save

from pyflow import checkpoint, engines, load, native
from pyflow.engines import manifest as manifests
from pyflow.engines.runner import denoiser_of
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput
from pyflow.export import export
from pyflow.export.build import Order
from pyflow.models import parameters
from pyflow.spec import Spec

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def step_folder(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("step") / "step.engine"
    export(tiny_checkpoint, folder, order=Order(what="step"))
    return folder


@pytest.fixture(scope="module")
def step(step_folder):
    return load(step_folder, threads=1)


@pytest.fixture(scope="module")
def sampler_folder(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampler") / "sampler.engine"
    export(tiny_checkpoint, folder, order=Order(what="sampler", steps=(1, 3), guidance=2.5, grid="cosine"))
    return folder


@pytest.fixture(scope="module")
def sampler(sampler_folder):
    return load(sampler_folder, threads=1)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture
def known(rng):
    image = rng.integers(256, size=(8, 8, 1), dtype=np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 3:] = True
    return image, mask


# ---- steps
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ddim", "ddpm", "renoise"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_step_engine_runs_every_plan(step, whole, solver, guidance, rng):
    asked = {"steps": 4, "solver": solver, "guidance": guidance, "label": [0, 2, 1], "first": 5}
    asked["seed"] = int(rng.integers(2**32))
    expected, came = whole.sample(3, **asked), step.sample(3, **asked)
    assert np.abs(came.states - expected.states).max() <= 1e-5 * np.abs(expected.states).max() * guidance
    assert came.row_seconds.shape == came.denoiser_seconds.shape == expected.row_seconds.shape
    assert (came.row_seconds >= came.denoiser_seconds).all()


def test_a_step_engine_inpaints(step, whole, known, rng):
    image, mask = known
    asked = {"batch": 2, "steps": 3, "label": 1, "seed": int(rng.integers(2**32))}
    came, expected = step.inpaint(image, mask, **asked), whole.inpaint(image, mask, **asked)
    assert np.abs(came.images.astype(int) - expected.images).max() <= 1
    assert (came.images[:, ~mask] == image[~mask]).all()


def test_a_step_engine_calls_back_after_each_row(step):
    rows = []
    step.sample(1, steps=3, label=0, callback=rows.append)
    assert rows == [0, 1, 2]


def test_a_step_of_a_network_without_null_label_knows_no_guidance(tmp_path, rng):
    export(save(tmp_path / "points", Spec(POINTS)), tmp_path / "a.engine", order=Order(what="step"))
    assert {path.name for path in (tmp_path / "a.engine").iterdir()} == {"step.onnx", "proof.npy", "manifest.json"}
    flow = load(tmp_path / "a.engine")
    seed = int(rng.integers(2**32))
    expected = load(tmp_path / "points").sample(5, steps=3, label=1, seed=seed).states
    np.testing.assert_allclose(flow.sample(5, steps=3, label=1, seed=seed).states, expected, atol=1e-5)
    with pytest.raises(InvalidInput, match="this network never learnt to predict without a label"):
        flow.sample(1, label=1, guidance=2.0)


# ---- whole samplers
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_whole_sampler_makes_the_pictures_of_its_plans(sampler, whole, steps, batch, rng):
    label = rng.integers(3, size=batch).tolist()
    asked = {"steps": steps, "guidance": 2.5, "grid": "cosine", "label": label, "seed": int(rng.integers(2**32))}
    expected, came = whole.sample(batch, **asked), sampler.sample(batch, **asked)
    assert np.abs(came.states - expected.states).max() <= 1e-5 * np.abs(expected.states).max() * 2.5
    assert came.row_seconds.shape == (1,)


@pytest.mark.parametrize(
    "asked",
    [{"steps": 2}, {"steps": 3, "grid": "uniform"}, {"steps": 3, "guidance": 1.0}, {"steps": 3, "solver": "renoise"}],
    ids=repr,
)
def test_a_whole_sampler_refuses_other_plans(sampler, asked):
    with pytest.raises(InvalidInput, match=r"whole samplers for 1 rows at guidance 2\.5, 3 rows at guidance 2\.5"):
        sampler.sample(1, **{"guidance": 2.5, "grid": "cosine", "label": 0} | asked)


def test_a_whole_sampler_knows_no_mask(sampler, known):
    with pytest.raises(InvalidInput, match="whole samplers, which know no mask"):
        sampler.inpaint(*known, steps=3, guidance=2.5, grid="cosine", label=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_whole_sampler_runs_under_onnxruntime_alone(sampler_folder, sampler, steps, rng):
    """Straight from the file, uint8 pictures out; several plans find their one file of weights beside them."""
    session = onnxruntime.InferenceSession(sampler_folder / f"sampler-{steps}.onnx", providers=["CPUExecutionProvider"])
    seed = int(rng.integers(2**32))
    feed = {"noise": native.normal(seed, 0, 4, 64, 0).reshape(4, 1, 8, 8), "label": np.array([0, 1, 2, 0])}
    (images,) = session.run(["images"], feed)
    own = sampler.sample(4, steps=steps, guidance=2.5, grid="cosine", label=[0, 1, 2, 0], seed=seed)
    assert (images.dtype, images.shape) == (np.uint8, (4, 8, 8, 1))
    assert np.abs(images.astype(int) - own.images).max() <= 1


def test_the_weights_of_several_plans_are_stored_once(sampler_folder, tiny_checkpoint, tmp_path):
    export(tiny_checkpoint, tmp_path / "one.engine", order=Order(what="sampler", steps=(3,)))
    alone = manifests.read(tmp_path / "one.engine").files
    assert set(alone) == {"sampler-3.onnx", "proof.npy"}
    both = manifests.read(sampler_folder).files
    assert set(both) == {"sampler-1.onnx", "sampler-3.onnx", "weights.bin", "proof.npy"}
    weights = 4 * parameters(checkpoint.load(tiny_checkpoint)[0])
    assert 0.5 * weights < both["weights.bin"].bytes < 1.5 * weights


ORDERS = {
    "what": ({"what": "network"}, "what is 'network'; expected one of denoiser, step, sampler"),
    "precision": ({"precision": "fp8"}, "precision is 'fp8'; expected one of fp32"),
    "grid": ({"grid": "log"}, "grid is 'log'; expected one of uniform"),
    "solver": ({"solver": "rk4"}, "solver is 'rk4'; expected one of euler"),
    "device": ({"device": "tpu"}, "device is 'tpu'; expected one of cpu, cuda"),
    "no steps": ({"what": "sampler", "steps": ()}, r"steps is \(\); expected step counts"),
    "twice": ({"what": "sampler", "steps": (2, 2)}, r"steps is \(2, 2\); expected step counts .* each once"),
    "zero": ({"what": "sampler", "steps": (0,)}, r"steps is \(0,\); expected"),
    "noise in each row": ({"what": "sampler", "solver": "ddpm"}, "solver is 'ddpm', which draws noise in every row"),
    "bf16 under onnx": ({"precision": "bf16"}, "ONNX Runtime has no such convolutions"),
}


@pytest.mark.parametrize(("order", "sentence"), ORDERS.values(), ids=ORDERS.keys())
def test_an_order_that_no_engine_fulfils_is_refused(tiny_checkpoint, tmp_path, order, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        export(tiny_checkpoint, tmp_path / "a.engine", order=Order(**order))
    assert not list(tmp_path.iterdir())


def test_guidance_in_a_sampler_needs_a_null_label(tmp_path):
    save(tmp_path / "points", Spec(POINTS))
    with pytest.raises(InvalidInput, match=r"guidance is 2\.0; expected 1, this network knows no null label"):
        export(tmp_path / "points", tmp_path / "a.engine", order=Order(what="sampler", guidance=2.0))


# ---- graphs that are not their manifests'
@pytest.mark.parametrize("what", ["step", "sampler"])
def test_a_graph_with_other_inputs_or_outputs_is_refused(sampler_folder, tiny_engine, what):
    manifest = replace(manifests.read(sampler_folder), what=what)
    model = (tiny_engine / "denoiser.onnx").read_bytes()
    files = {"step.onnx": model, "step-guided.onnx": model, "sampler-1.onnx": model, "sampler-3.onnx": model}
    with pytest.raises(InvalidArtefact, match=rf"the graph {what}\S* takes x.* and makes prediction; expected .*again"):
        engines.runner(manifest, files)
    name = {"step": "step", "sampler": "sampler-1"}[what]
    with pytest.raises(InvalidArtefact, match=rf"the engine lacks '{name}\.onnx'; it holds denoiser\.onnx: export"):
        engines.runner(manifest, {"denoiser.onnx": model})


def test_a_step_is_not_its_guided_step(step_folder):
    _, manifest, files = engines.open_engine(step_folder)
    swapped = {**files, "step.onnx": files["step-guided.onnx"], "step-guided.onnx": files["step.onnx"]}
    with pytest.raises(InvalidArtefact, match=r"graph step takes .*guidance.* makes next, guided; expected row"):
        engines.runner(manifest, swapped)


# ---- a graph as a denoiser
def test_a_graph_that_makes_another_shape_is_refused():
    denoiser = denoiser_of(lambda given: [given["x"][:, :1]], ("x",), (2,))
    with pytest.raises(InvalidInput, match=r"the graph made float32 \(1, 1\); expected float32 \(1, 2\)"):
        native.sample(denoiser, [(0, 1, 1, 1, 0, 0, 1, 0)], batch=1)


def test_an_absent_device_is_named(tiny_engine):
    with pytest.raises(InvalidInput, match="device is 'npu'; ONNX Runtime knows cpu, cuda, tensorrt"):
        load(tiny_engine, device="npu")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BackendUnavailable, match="this onnxruntime has no CUDAExecutionProvider"):
            load(tiny_engine, device="cuda")
