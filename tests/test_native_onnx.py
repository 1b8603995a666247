"""The ONNX denoiser: NumPy's numbers, no dependence on the batch, and refusals that tell why."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyflow import core, native
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402 - after the skip

SHAPE, CLASSES, NULL = (2, 3, 4), 5, 4
WEIGHTS = np.random.default_rng(0).normal(0, 0.3, (4, 4)).astype(np.float32)
EMBEDDING = np.random.default_rng(1).normal(0, 1, (CLASSES, *SHAPE)).astype(np.float32)
PLAN = core.ab2(core.LINEAR, core.VELOCITY, core.uniform_grid(5))


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def serialise(nodes, inputs, outputs, constants=()):
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants]
    graph = helper.make_graph(nodes, "network", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def full_model(batch="batch"):
    """velocity = (t - s + 0.5) * (x @ WEIGHTS) + EMBEDDING[label]."""
    floats, node = TensorProto.FLOAT, helper.make_node
    return serialise(
        [
            node("MatMul", ["x", "weights"], ["mixed"]),
            node("Sub", ["t", "s"], ["reach"]),
            node("Add", ["reach", "half"], ["scale"]),
            node("Reshape", ["scale", "column"], ["tall"]),
            node("Mul", ["mixed", "tall"], ["scaled"]),
            node("Gather", ["embedding", "label"], ["told"]),
            node("Add", ["scaled", "told"], ["velocity"]),
        ],
        [
            value("label", TensorProto.INT64, batch),  # not in the order of the buffers, on purpose
            value("t", floats, batch),
            value("s", floats, batch),
            value("x", floats, batch, *SHAPE),
        ],
        [value("velocity", floats, batch, *SHAPE)],
        [
            ("weights", WEIGHTS),
            ("embedding", EMBEDDING),
            ("half", np.float32([0.5])),
            ("column", np.array([-1, 1, 1, 1])),
        ],
    )


def in_numpy(x, s, t, label, out):
    out[...] = (t - s + np.float32(0.5)).reshape(-1, 1, 1, 1) * (x @ WEIGHTS) + EMBEDDING[label]


@pytest.fixture(scope="module")
def engine():
    return native.onnx_denoiser(full_model(), threads=1)


def test_it_tells_its_shape_and_inputs(engine):
    assert engine.shape == SHAPE
    assert sorted(engine.inputs) == ["label", "s", "t", "x"]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_it_equals_numpy(threads, guidance):
    common = {"batch": 6, "seed": 4, "guidance": guidance, "label": [0, 1, 2, 3, 0, 1], "null_label": NULL}
    got = native.sample(native.onnx_denoiser(full_model(), threads), PLAN, **common).states
    expected = native.sample(native.callable_denoiser(in_numpy, SHAPE), PLAN, **common).states
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch(engine):
    together = native.sample(engine, PLAN, batch=8, guidance=3.0, label=1, null_label=NULL).states
    for i in range(8):
        alone = native.sample(engine, PLAN, batch=1, first=i, guidance=3.0, label=1, null_label=NULL).states
        np.testing.assert_array_equal(alone[0], together[i])


def test_threads_share_one_engine(engine):
    def run(seed):
        return native.sample(engine, PLAN, batch=3, seed=seed, guidance=1.5, label=2, null_label=NULL).states

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(40)))
    for seed, got in enumerate(together):
        np.testing.assert_array_equal(got, run(seed))


def scaling(**changes):
    """out = 2 * x, with some part of the model changed."""
    part = {
        "inputs": [value("x", TensorProto.FLOAT, "batch", 4)],
        "output": value("y", TensorProto.FLOAT, "batch", 4),
        "node": helper.make_node("Add", ["x", "x"], ["y"]),
        **changes,
    }
    return serialise([part["node"]], part["inputs"], [part["output"]])


def test_a_model_may_read_x_alone():
    engine = native.onnx_denoiser(scaling(), threads=1)
    assert engine.inputs == ("x",)
    noise0 = np.float32([[1, 2, 3, 4]])
    euler = core.euler(core.LINEAR, core.VELOCITY, (0.0, 1.0))
    np.testing.assert_array_equal(native.sample(engine, euler, batch=1, noise0=noise0).states, 3 * noise0)
    with pytest.raises(InvalidInput, match="label is 1 and the network reads x"):
        native.sample(engine, euler, batch=1, label=1)
    with pytest.raises(InvalidInput, match=r"guidance is 2\.0 and this network reads x"):
        native.sample(engine, euler, batch=1, label=1, guidance=2.0)


def test_ctrl_c_ends_a_run_in_which_no_python_runs():
    code = f"""
import os, signal, threading, time
import numpy as np
from pyflow import native
def interrupt():
    global sent
    sent = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)
engine = native.onnx_denoiser({scaling()!r}, threads=1)
threading.Timer(0.5, interrupt).start()
try:
    native.sample(engine, np.tile([0, 1, 1, 0, 0, 0, 1, 0], (5_000_000, 1)), batch=1)
except KeyboardInterrupt:
    print(time.perf_counter() - sent)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout or "inf") < 1, "the run went on after Ctrl-C"


# ---- refusals
FLOAT_X = value("x", TensorProto.FLOAT, "batch", 4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"not a model", "ONNX Runtime refused the model"),
        (full_model()[:-200], "ONNX Runtime refused the model"),
        (
            scaling(inputs=[value("z", TensorProto.FLOAT, "batch", 4)], node=helper.make_node("Neg", ["z"], ["y"])),
            "asks for 'z'; expected inputs among x, s, t, label",
        ),
        (
            scaling(
                inputs=[value("x", TensorProto.DOUBLE, "batch", 4)], output=value("y", TensorProto.DOUBLE, "batch", 4)
            ),
            "input 'x' has element type 11",
        ),
        (
            scaling(inputs=[FLOAT_X, value("label", TensorProto.INT32, "batch")]),
            "input 'label' has element type 6",
        ),
        (scaling(inputs=[FLOAT_X, value("s", TensorProto.FLOAT, "batch", 1)]), r"input 's' is \(\?, 1\)"),
        (scaling(inputs=[value("x", TensorProto.FLOAT, "batch", "width")]), r"x is \(\?, \?\); expected a batch"),
        (
            scaling(output=value("y", TensorProto.BOOL, "batch", 4), node=helper.make_node("Equal", ["x", "x"], ["y"])),
            "first output 'y' is .* of element type 9",
        ),
        (
            scaling(
                output=value("y", TensorProto.FLOAT, "batch", 8),
                node=helper.make_node("Concat", ["x", "x"], ["y"], axis=1),
            ),
            r"first output 'y' is \(\?, 8\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model, message):
    with pytest.raises(InvalidArtefact, match=message):
        native.onnx_denoiser(model, threads=1)


def test_what_is_no_model_at_all_is_refused():
    with pytest.raises(InvalidInput, match="model is a str; expected the bytes"):
        native.onnx_denoiser("student.onnx")
    with pytest.raises(InvalidInput, match="threads is -1"):
        native.onnx_denoiser(scaling(), threads=-1)


def test_a_fixed_batch_is_told():
    engine = native.onnx_denoiser(full_model(batch=2), threads=1)
    assert np.isfinite(native.sample(engine, PLAN, batch=2, label=0).states).all()
    with pytest.raises(InvalidInput, match=r"exported for a batch of 2 and is asked for 4 \(guidance doubles"):
        native.sample(engine, PLAN, batch=2, label=0, guidance=2.0)


def test_a_failure_in_the_run_carries_onnx_runtimes_message(engine):
    with pytest.raises(RuntimeError, match=r"ONNX Runtime failed: .*out of data bounds"):
        native.sample(engine, PLAN, batch=1, label=CLASSES)


# ---- the library
def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[onnx\]"'):
        native.onnx_denoiser(scaling())


def test_a_library_that_does_not_open_or_is_another_is_told():
    with pytest.raises(BackendUnavailable, match=r"could not be opened: .*nowhere\.so"):
        native._C.OnnxDenoiser("nowhere.so", scaling(), 1)
    with pytest.raises(BackendUnavailable, match="does not export OrtGetApiBase"):
        native._C.OnnxDenoiser(native._C.__file__, scaling(), 1)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to build a stand-in library")
def test_a_library_that_is_too_old_is_told(tmp_path):
    source, library = tmp_path / "old.c", tmp_path / "libold.so"
    source.write_text(
        "static const void* get(unsigned version) { (void)version; return 0; }\n"
        'static const char* version(void) { return "1.10.0"; }\n'
        "static const struct { const void* (*a)(unsigned); const char* (*b)(void); } base = {get, version};\n"
        "const void* OrtGetApiBase(void) { return &base; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    with pytest.raises(BackendUnavailable, match=r"ONNX Runtime 1\.10\.0 does not offer C API 16"):
        native._C.OnnxDenoiser(str(library), scaling(), 1)
