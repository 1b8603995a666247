"""TensorRT: plans are built and inspected without a GPU; how one is run is rehearsed over CPU tensors."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
from tiny import POINTS, network, save  # noqa: E402 - after the skips

from pyflow import engines, export  # noqa: E402
from pyflow.engines import host, tensorrt  # noqa: E402
from pyflow.engines import manifest as manifests  # noqa: E402
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput  # noqa: E402
from pyflow.export import tensorrt as export_tensorrt  # noqa: E402
from pyflow.export.build import Order, shapes_of  # noqa: E402
from pyflow.export.onnx import trace  # noqa: E402
from pyflow.spec import Spec, UNet  # noqa: E402

PICTURES = UNet(shape=(1, 4, 4), channels=8, multipliers=(1,), blocks=1, attention=(), heads=1, classes=3)
BATCHED = {"x", "previous", "noise", "mask", "image", "noise0"}


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU for those who only ask for one."""
    monkeypatch.setattr(host, "gpu", lambda: "sm_90")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return save(tmp_path_factory.mktemp("points") / "checkpoint", Spec(POINTS, null_label=True))


# ---- what is built
@pytest.mark.parametrize(
    ("what", "precision"), [("denoiser", "fp32"), ("denoiser", "bf16"), ("denoiser", "fp16"), ("step", "fp32")]
)
def test_a_definition_has_the_inputs_types_and_batches_of_its_graph(rtx, what, precision):
    spec = Spec(POINTS, null_label=True)
    shapes = shapes_of(network(POINTS, 0), spec, Order(what=what, precision=precision))
    for shape in shapes.values():
        made = export_tensorrt.define(rtx, trace(shape, spec).SerializeToString())
        inputs = {made.network.get_input(k).name: made.network.get_input(k) for k in range(made.network.num_inputs)}
        assert tuple(inputs) == shape.names
        for name, given in inputs.items():
            if name in ("row", "guidance"):
                assert tuple(given.shape) == ((8,) if name == "row" else (1,))
                continue
            rest = (2,) if name in BATCHED else ()
            assert [tuple(each) for each in made.profile.get_shape(name)] == [(k, *rest) for k in (1, 16, 256)]
            assert given.dtype == (rtx.DataType.INT64 if name == "label" else rtx.DataType.FLOAT)
        outputs = [made.network.get_output(k) for k in range(made.network.num_outputs)]
        assert tuple(output.name for output in outputs) == shape.outputs
        assert {output.dtype for output in outputs} == {rtx.DataType.FLOAT}
        assert not made.config.get_flag(rtx.BuilderFlag.TF32)
        products = [k for k in map(made.network.get_layer, range(made.network.num_layers)) if "MATRIX" in str(k.type)]
        kinds = {"fp32": rtx.DataType.FLOAT, "bf16": rtx.DataType.BF16, "fp16": rtx.DataType.HALF}
        assert {layer.get_output(0).dtype for layer in products} == {kinds[precision]}


def test_every_shape_is_built_to_plans_without_pictures_in_them(rtx, gpu):
    """A whole sampler of pictures too, whose uint8 output TensorRT's parser refuses."""
    spec = Spec(PICTURES, null_label=True)
    net = network(PICTURES, 0)
    (shape,) = shapes_of(net, spec, Order(what="sampler", steps=(1,))).values()
    model = trace(shape, spec).SerializeToString()
    with pytest.raises(InvalidArtefact, match="UINT8"):
        export_tensorrt.define(rtx, model)
    built = export_tensorrt.build(net, spec, Order(what="sampler", steps=(1,), device="cuda"))
    assert list(built.files) == ["sampler-1.plan"]
    assert len(built.files["sampler-1.plan"]) > 10_000


def test_a_sampler_of_four_steps_is_built_and_says_what_it_needs(rtx, gpu):
    built = export_tensorrt.build(
        network(POINTS, 0), Spec(POINTS, null_label=True), Order(what="sampler", steps=(4,), device="cuda")
    )
    name = tensorrt.installed()
    assert list(built.files) == ["sampler-4.plan"]
    assert built.requires[name] == host.release(name, 4)
    assert ("gpu" in built.requires) == (name == "tensorrt")


def test_a_unet_is_built(rtx, tiny_engine):
    model = manifests.payload(tiny_engine, manifests.read(tiny_engine))["denoiser.onnx"]
    assert len(export_tensorrt.build_plan(rtx, model)) > 10_000


def test_what_is_no_onnx_model_is_refused(rtx):
    with pytest.raises(InvalidArtefact, match="tensorrt_rtx refused the ONNX model: "):
        export_tensorrt.define(rtx, b"no model")


# ---- what is refused before anything is built
def test_without_a_gpu_nothing_is_built(points, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "gpu", lambda: "")
    monkeypatch.setattr(export_tensorrt, "installed", lambda: "tensorrt-rtx")
    monkeypatch.setattr(export_tensorrt, "build_plan", lambda *_: pytest.fail("a plan was built"))
    with pytest.raises(BackendUnavailable, match=r"published only after its proof, .* needs an NVIDIA GPU"):
        export.export(points, tmp_path / "engine", "tensorrt")
    assert not list(tmp_path.iterdir())


def test_without_tensorrt_the_way_out_is_named(points, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "release", lambda *_: "")
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[tensorrt\]"'):
        export.export(points, tmp_path / "engine", "tensorrt")
    monkeypatch.setitem(tensorrt.PACKAGES, "tensorrt", "tensorrt_that_nobody_has")
    with pytest.raises(BackendUnavailable, match=r'tensorrt is not here .*pip install "pyflow-engine\[tensorrt\]"'):
        tensorrt.package("tensorrt")


def test_other_devices_and_precisions_are_refused(points, tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(export_tensorrt, "installed", lambda: "tensorrt-rtx")
    monkeypatch.setattr(export_tensorrt, "package", lambda name: None)
    with pytest.raises(InvalidInput, match="device is 'cpu'; a TensorRT engine runs on 'cuda'"):
        export.export(points, tmp_path / "engine", "tensorrt")
    with pytest.raises(InvalidInput, match="precision is 'int8'; expected one of fp32, bf16, fp16"):
        export.export(points, tmp_path / "engine", "tensorrt", Order(precision="int8", device="cuda"))
    with pytest.raises(InvalidInput, match="device is 'cpu'; a TensorRT engine runs on 'cuda'"):
        tensorrt.open_engine(None, {}, 0, "cpu")


def test_another_gpu_or_release_is_refused_before_the_plan_is_read(monkeypatch):
    monkeypatch.setattr(host, "gpu", lambda: "sm_90")
    monkeypatch.setattr(host, "versions", lambda *names: dict.fromkeys(names, "10.9.0.34"))
    host.refuse_misfit("an engine", {"gpu": "sm_90", "tensorrt": "10.9.0.34", "torch": "10.9"})
    with pytest.raises(BackendUnavailable, match="was built for a GPU of architecture sm_86; here is sm_90"):
        host.refuse_misfit("an engine", {"gpu": "sm_86", "tensorrt": "10.9.0.34"})
    for other in ("10.9.0.35", "10.8.0.34"):
        with pytest.raises(BackendUnavailable, match=rf"was built with tensorrt {other}; here is 10\.9\.0\.34"):
            host.refuse_misfit("an engine", {"gpu": "sm_90", "tensorrt": other})


def test_a_plan_that_tensorrt_refuses(rtx):
    with pytest.raises(InvalidArtefact, match=r"tensorrt_rtx refused denoiser\.plan on this GPU: export it again"):
        tensorrt.load(rtx, b"no plan", "denoiser")


# ---- how a plan is run
class FakePlan:
    """TensorRT's engine of prediction = 2x + s, whose contexts write through the addresses that they were given."""

    num_io_tensors = 3
    names = ("x", "s", "prediction")

    def __init__(self) -> None:
        self.threads: list[int] = []

    get_tensor_name = names.__getitem__

    def get_tensor_mode(self, name):
        return "output" if name == "prediction" else "input"

    def get_tensor_dtype(self, name):
        return "float"

    def get_tensor_profile_shape(self, name, profile):
        return tuple((batch, 2)[: 1 if name == "s" else 2] for batch in (1, 16, 256))

    def create_execution_context(self):
        self.threads.append(threading.get_ident())
        return FakeContext()


class FakeContext:
    def __init__(self) -> None:
        self.shapes, self.addresses, self.owner = {}, {}, threading.get_ident()

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return 1 <= shape[0] <= 256

    def get_tensor_shape(self, name):
        return self.shapes["x"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == 0
        assert self.owner == threading.get_ident()
        values = {name: self.memory(name) for name in FakePlan.names}
        values["prediction"][...] = 2 * values["x"] + values["s"][:, None]
        return bool(np.isfinite(values["x"]).all())

    def memory(self, name):
        import ctypes

        shape = self.shapes.get(name, self.shapes["x"])
        pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape)


FAKE = SimpleNamespace(
    DataType=SimpleNamespace(FLOAT="float", HALF="half", BF16="bf16", INT64="int64"),
    TensorIOMode=SimpleNamespace(INPUT="input"),
)


def feed_of(rng, batch: int) -> dict[str, np.ndarray]:
    return {
        "x": rng.standard_normal((batch, 2)).astype(np.float32),
        "s": rng.random(batch).astype(np.float32),
        "t": np.zeros(batch, np.float32),  # which this network does not read
    }


def test_a_plan_is_fed_by_address_and_its_results_are_copied(rng):
    call = tensorrt.graph(FAKE, FakePlan(), "cpu")
    feeds = [feed_of(rng, batch) for batch in (1, 5, 256, 3)]
    for feed in feeds:
        feed["x"].flags.writeable = False
    results = [call(feed)[0] for feed in feeds]  # none of which a later call may overwrite
    for feed, result in zip(feeds, results):
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, 2 * feed["x"] + feed["s"][:, None])
    strided = {**feeds[2], "x": np.asfortranarray(feeds[2]["x"])}
    np.testing.assert_array_equal(call(strided)[0], results[2])


def test_each_thread_has_a_context(rng):
    plan = FakePlan()
    call, feeds = tensorrt.graph(FAKE, plan, "cpu"), [feed_of(rng, batch) for batch in range(1, 33)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda feed: call(feed)[0], feeds))
    for feed, result in zip(feeds, results):
        np.testing.assert_array_equal(result, 2 * feed["x"] + feed["s"][:, None])
    assert 1 <= len(plan.threads) == len(set(plan.threads)) <= 4


def test_a_batch_beyond_the_profile_and_a_failed_run_are_told(rng):
    call = tensorrt.graph(FAKE, FakePlan(), "cpu")
    with pytest.raises(InvalidInput, match=r"x has shape \(257, 2\); this engine takes \(1, 2\) to \(256, 2\)"):
        call(feed_of(rng, 257))
    with pytest.raises(BackendUnavailable, match="TensorRT could not run the engine"):
        call({**feed_of(rng, 2), "x": np.full((2, 2), np.inf, np.float32)})


def test_the_manifest_names_the_module_that_opens_its_plans(tiny_engine, monkeypatch):
    """Through the one door of engines: the RTX engine's plan, as verified, to tensorrt_rtx."""
    opened = []
    monkeypatch.setattr(tensorrt, "package", lambda name: opened.append(name) or FAKE)
    monkeypatch.setattr(tensorrt, "load", lambda module, content, name: opened.append((name, content)) or FakePlan())
    manifest = replace(manifests.read(tiny_engine), backend="tensorrt", requires={"tensorrt-rtx": "1.7.1.116"})
    engines.runner(manifest, {"denoiser.plan": b"plan"}, device="cuda")
    assert opened == ["tensorrt-rtx", ("denoiser", b"plan")]
    with pytest.raises(InvalidArtefact, match=r"the engine lacks 'denoiser\.plan'"):
        engines.runner(manifest, {}, device="cuda")
