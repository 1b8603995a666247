"""OpenVINO engines: the three shapes against the reference, bfloat16 to its bound, and what is refused."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("openvino", exc_type=ImportError)
onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
from tiny import POINTS, save  # noqa: E402 - after the skips

from pyflow import certificate, checkpoint, engines, load  # noqa: E402
from pyflow.engines import host, openvino  # noqa: E402
from pyflow.engines import manifest as manifests  # noqa: E402
from pyflow.engines.manifest import BOUNDS  # noqa: E402
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput  # noqa: E402
from pyflow.export import export  # noqa: E402
from pyflow.export import openvino as export_openvino  # noqa: E402
from pyflow.export.build import Order  # noqa: E402
from pyflow.spec import Spec  # noqa: E402

BF16 = export_openvino.BF16_FLAG in host.cpu_flags()
needs_bf16 = pytest.mark.skipif(not BF16, reason="needs a CPU with bfloat16")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A checkpoint of a two-time MLP that knows the null label."""
    return save(tmp_path_factory.mktemp("points") / "checkpoint", Spec(POINTS, null_label=True))


@pytest.fixture(scope="module")
def tiny_draft(tiny_engine):
    """The files of the tiny UNet as ONNX wrote them, and their manifest as OpenVINO's."""
    manifest = manifests.read(tiny_engine)
    return manifests.payload(tiny_engine, manifest), replace(manifest, backend="openvino")


def measured(runner, model, spec, precision):
    made = certificate.cases(spec)
    expected = certificate.Expected(spec, made, certificate.fresh_seed()).compute(model)
    return certificate.measure(runner, spec, made, expected, BOUNDS[precision])


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_a_unet_is_within_the_bound_of_its_precision(tiny_checkpoint, tiny_draft, precision):
    model, spec = checkpoint.load(tiny_checkpoint)
    files, draft = tiny_draft
    proved = measured(engines.runner(replace(draft, precision=precision), files, 1), model, spec, precision)
    assert proved.cases == 52
    assert (proved.worst > 1e-4) == (precision == "bf16"), "bfloat16 is seen, or float32 was asked for and not run"


@pytest.mark.parametrize("what", ["denoiser", "step", "sampler"])
def test_every_shape_is_published_and_samples_as_its_checkpoint(points, tmp_path, what, rng):
    manifest = export(points, tmp_path / "engine", "openvino", Order(what=what, steps=(2,)))
    assert manifest.requires == {}
    assert manifest.certificate.worst <= 1e-5
    assert set(manifest.versions) == {"pyflow-engine", "torch", "onnx", "openvino"}
    seed = int(rng.integers(2**32))
    flow = load(tmp_path / "engine", threads=1)
    came = flow.sample(5, steps=2, label=[0, 1, 2, 1, 0], seed=seed).states
    expected = load(points).sample(5, steps=2, label=[0, 1, 2, 1, 0], seed=seed).states
    assert np.abs(came - expected).max() <= 1e-5 * np.abs(expected).max(), f"seed {seed}"


@needs_bf16
def test_bfloat16_says_what_it_needs_of_the_cpu(points, tmp_path, monkeypatch):
    manifest = export(points, tmp_path / "engine", "openvino", Order(precision="bf16"))
    assert manifest.requires == {"cpu": ("avx512_bf16",)}
    assert manifest.certificate.psnr >= 40
    monkeypatch.setattr(host, "cpu_flags", lambda: ("avx2",))
    with pytest.raises(BackendUnavailable, match="needs the instruction sets avx512_bf16, which this CPU lacks"):
        load(tmp_path / "engine")
    with pytest.raises(BackendUnavailable, match=r"this CPU lacks avx512_bf16.*export fp32"):
        export(points, tmp_path / "other", "openvino", Order(precision="bf16"))
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def model_of(nodes, width: int, outputs: int, **values) -> bytes:
    """A small ONNX model from x (batch, width) to prediction (batch, outputs)."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", width])
    y = onnx.helper.make_tensor_value_info("prediction", onnx.TensorProto.FLOAT, ["batch", outputs])
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph([onnx.helper.make_node(*node) for node in nodes], "g", [x], [y], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]).SerializeToString()


@needs_bf16
def test_bfloat16_keeps_the_angles_of_the_times(rng):
    """Sines of up to 100 radians lose what bfloat16 takes of a sine; of an angle it would take up to 0.25 radians."""
    waves = np.geomspace(1, 100, 64, dtype=np.float32)[None]
    nodes = [("Mul", ["x", "waves"], ["a"]), ("Sin", ["a"], ["b"]), ("MatMul", ["b", "eye"], ["prediction"])]
    graph = openvino.graph(model_of(nodes, 1, 64, waves=waves, eye=np.eye(64, dtype=np.float32)), "sines", "bf16", 1)
    times = rng.random((64, 1)).astype(np.float32)
    (came,) = graph({"x": times})
    error = np.abs(came - np.sin(times.astype(np.float64) * waves)).max()
    assert 1e-4 < error < 0.01, "bfloat16, and of the sines alone"


def test_threads_share_an_engine(tiny_checkpoint, tiny_draft):
    files, draft = tiny_draft
    runner = engines.runner(draft, files, 1)
    case = certificate.cases(draft.spec)[0]
    requests = [certificate.request_of(case, draft.spec, seed) for seed in range(8)]
    alone = [runner.run(request).states for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: runner.run(request).states, requests * 4))
    for index, states in enumerate(together):
        np.testing.assert_array_equal(states, alone[index % 8])


def test_a_quantised_graph_runs(rng):
    nodes = [
        ("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        ("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        ("DequantizeLinear", ["w", "scale", "zero"], ["v"]),
        ("MatMul", ["d", "v"], ["prediction"]),
    ]
    weights, scale = rng.integers(-127, 128, (8, 4)).astype(np.int8), np.float32(2**-5)
    graph = openvino.graph(
        model_of(nodes, 8, 4, w=weights, scale=np.array(scale), zero=np.array(0, np.int8)), "q", "int8", 1
    )
    given = rng.integers(-127, 128, (3, 8)).astype(np.float32) * scale
    np.testing.assert_allclose(graph({"x": given})[0], given @ (weights * scale), rtol=1e-6, atol=1e-6)


# ---- what is refused
def test_other_devices_and_precisions_are_refused(points, tiny_draft, tmp_path):
    files, draft = tiny_draft
    with pytest.raises(InvalidInput, match="device is 'cuda'; an OpenVINO engine runs on 'cpu'"):
        engines.runner(draft, files, 0, "cuda")
    with pytest.raises(InvalidInput, match="precision is 'fp16'; OpenVINO runs fp32, bf16 here"):
        export(points, tmp_path / "engine", "openvino", Order(precision="fp16"))
    assert not list(tmp_path.iterdir())


def test_damage_is_refused(tiny_draft):
    files, draft = tiny_draft
    with pytest.raises(InvalidArtefact, match=r"OpenVINO refused denoiser: "):
        engines.runner(draft, {"denoiser.onnx": files["denoiser.onnx"][:-100]})
    with pytest.raises(InvalidArtefact, match=r"the engine lacks 'denoiser\.onnx'"):
        engines.runner(draft, {})


def test_without_openvino_the_way_out_is_named(points, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[openvino\]"'):
        export(points, tmp_path / "engine", "openvino")


def test_openvino_is_imported_without_its_telemetry():
    code = (
        "import sys; from pyflow.engines.openvino import package; package();"
        "print([name for name in sys.modules if name.partition('.')[0] == 'openvino_telemetry'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
