"""ONNX Runtime's providers: a graph runs where it was asked to, or not at all."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pyflow import load
from pyflow.engines import manifest as manifests
from pyflow.engines import onnx, tensorrt
from pyflow.engines.runner import Signature
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The files of a step engine: two graphs that share their weights."""
    pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from tiny import POINTS, network

    from pyflow.export.build import Order
    from pyflow.export.onnx import build
    from pyflow.spec import Spec

    return build(network(POINTS, 0), Spec(POINTS, null_label=True), Order(what="step")).files


class FakeRuntime(ModuleType):
    """An onnxruntime with NVIDIA's providers; `ran` says on which each kind of node would run."""

    def __init__(self, ran: dict[str, str], session_on: str) -> None:
        super().__init__("onnxruntime")
        self.ran, self.session_on = ran, session_on
        self.entries, self.weights, self.asked = {}, {}, []

    def get_available_providers(self):
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]

    def SessionOptions(self):
        def keep(names, contents, sizes):
            self.weights = dict(zip(names, zip(contents, sizes)))

        self.options = SimpleNamespace(
            add_session_config_entry=self.entries.__setitem__, add_external_initializers_from_files_in_memory=keep
        )
        return self.options

    def InferenceSession(self, content, options, providers):
        self.asked = providers

        def part(kind, provider):
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=kind)])

        return SimpleNamespace(
            get_providers=lambda: list(dict.fromkeys([self.session_on, CPU])),
            get_provider_graph_assignment_info=lambda: [part(*pair) for pair in self.ran.items()],
            get_outputs=lambda: [SimpleNamespace(name=name) for name in ("states", "images")],
            run=lambda outputs, feed: [(name, feed) for name in outputs],
        )


@pytest.fixture
def fake(monkeypatch):
    def make(ran, session_on):
        runtime = FakeRuntime(ran, session_on)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        return runtime

    return make


GPUS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
each_gpu = pytest.mark.parametrize(("device", "provider"), GPUS.items())


@each_gpu
def test_a_graph_that_runs_where_it_was_asked_to(fake, device, provider):
    runtime = fake({"Conv": provider, "Softmax": provider, "Shape": CPU, "Concat": CPU}, provider)
    call = onnx.graph({"sampler-4.onnx": b"model"}, "sampler-4.onnx", 3, device)
    assert call({"noise": 1}) == [("states", {"noise": 1}), ("images", {"noise": 1})]
    assert runtime.entries["session.record_ep_graph_assignment_info"] == "1"
    assert runtime.options.intra_op_num_threads == 3
    assert [name for name, _ in runtime.asked] == [provider]
    assert dict(runtime.asked)[provider] == ({"use_tf32": "0"} if device == "cuda" else {})


@each_gpu
def test_a_node_of_the_network_on_the_cpu_is_refused(fake, device, provider):
    fake({"Conv": provider, "InstanceNormalization": CPU, "Softmax": CPU, "Shape": CPU}, provider)
    sentence = f"would not run on {provider}: InstanceNormalization on {CPU}, Softmax on {CPU}; .*device='cpu'"
    with pytest.raises(BackendUnavailable, match=sentence):
        onnx.graph({"step.onnx": b"model"}, "step.onnx", 0, device)


@each_gpu
def test_a_session_that_fell_back_is_refused(fake, device, provider):
    """What onnxruntime-gpu does where the CUDA libraries are missing: a warning, and a session on the CPU."""
    fake({"Conv": CPU}, CPU)
    with pytest.raises(BackendUnavailable, match=f"would not run on {provider}: its session is on {CPU}; install"):
        onnx.graph({"step.onnx": b"model"}, "step.onnx", 0, device)
    fake({}, CPU)
    with pytest.raises(BackendUnavailable, match=f"its session is on {CPU}"):
        onnx.graph({"step.onnx": b"model"}, "step.onnx", 0, device)


def test_shared_weights_come_from_what_was_verified(fake):
    runtime = fake({}, GPUS["cuda"])
    onnx.graph({"step.onnx": b"model", onnx.WEIGHTS: b"1234"}, "step.onnx", 0, "cuda")
    assert runtime.weights == {"weights.bin": (b"1234", 4)}


def test_a_tensorrt_plan_with_other_names_is_refused():
    """As an ONNX graph is; only what is asked for before anything runs."""
    pytest.importorskip("torch")
    kinds = SimpleNamespace(FLOAT=0, HALF=1, BF16=2, INT64=3)
    module = SimpleNamespace(DataType=kinds, TensorIOMode=SimpleNamespace(INPUT="in"))
    names = ["noise", "label", "states"]
    plan = SimpleNamespace(
        num_io_tensors=3,
        get_tensor_name=names.__getitem__,
        get_tensor_mode=lambda name: "out" if name == "states" else "in",
        get_tensor_dtype=lambda name: kinds.FLOAT,
    )
    tensorrt.graph(module, plan, "cpu", Signature("sampler-4", ("noise", "label"), ("states",)))
    with pytest.raises(
        InvalidArtefact, match="sampler-4 takes noise, label and makes states; expected noise and states"
    ):
        tensorrt.graph(module, plan, "cpu", Signature("sampler-4", ("noise",), ("states",)))


# ---- with the onnxruntime that is here
@pytest.mark.parametrize("device", GPUS)
def test_a_provider_that_is_not_here_is_refused(tiny_engine, device):
    onnxruntime = pytest.importorskip("onnxruntime")
    if GPUS[device] in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    with pytest.raises(BackendUnavailable, match=rf"device is '{device}' .* no {GPUS[device]}, .* onnxruntime-gpu"):
        load(tiny_engine, device=device)


def test_an_unknown_device_is_refused(tiny_engine):
    manifest = manifests.read(tiny_engine)
    with pytest.raises(InvalidInput, match="device is 'tpu'; ONNX Runtime knows cpu, cuda, tensorrt"):
        onnx.open_engine(manifest, {}, 0, "tpu")


def test_without_onnxruntime_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[onnx\]"'):
        onnx.graph({"step.onnx": b""}, "step.onnx")


def test_graphs_that_share_weights_run_from_their_bytes_alone(steps, rng, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    (tmp_path / onnx.WEIGHTS).write_bytes(bytes(len(steps[onnx.WEIGHTS])))  # a file of that name is no temptation
    x = rng.standard_normal((3, 2)).astype(np.float32)
    zeros = np.zeros_like(x)
    feed = {"row": np.array([0.5, 0.5, 0, 1, 0, 0, 0, 1], np.float32), "x": x, "label": np.array([0, 1, 2])}
    feed |= {"previous": zeros, "noise": zeros, "mask": zeros + 1, "image": zeros, "noise0": zeros}
    plain, _ = onnx.graph(steps, "step.onnx", 1)(feed)
    guided, _ = onnx.graph(steps, "step-guided.onnx", 1)({**feed, "guidance": np.ones(1, np.float32)})
    assert np.abs(plain).max() > 0.01
    np.testing.assert_allclose(guided, plain, rtol=1e-4, atol=1e-6)
    damaged = {**steps, onnx.WEIGHTS: steps[onnx.WEIGHTS][:-64]}
    with pytest.raises(InvalidArtefact, match=r"ONNX Runtime refused step\.onnx on CPUExecutionProvider"):
        onnx.graph(damaged, "step.onnx")


def test_the_session_tells_where_every_node_runs(steps):
    """The one fact of onnxruntime that the refusals rest on."""
    runtime = pytest.importorskip("onnxruntime")
    options, weights = runtime.SessionOptions(), steps[onnx.WEIGHTS]
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_external_initializers_from_files_in_memory([onnx.WEIGHTS], [weights], [len(weights)])
    parts = runtime.InferenceSession(steps["step.onnx"], options, providers=[CPU]).get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {CPU}
    assert {"Gemm", "Sin", "Mul", "Where"} <= {node.op_type for part in parts for node in part.get_nodes()}
