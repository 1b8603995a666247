"""OpenVINO on the CPU: graphs of an ONNX file each, compiled here, from their bytes and in the engine's precision."""

import sys
import threading
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

from .manifest import Manifest
from .runner import Graph, Runner, Signature, runner_of, signature

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8 is in the graph, what is around it float32


def open_engine(manifest: Manifest, files: Mapping[str, bytes], threads: int, device: str) -> Runner:
    if device != "cpu":
        raise InvalidInput(f"device is {device!r}; an OpenVINO engine runs on 'cpu': for a GPU take --to tensorrt")
    precision = manifest.precision
    return runner_of(
        manifest, lambda name: graph(files[f"{name}.onnx"], name, precision, threads, signature(manifest, name))
    )


def graph(content: bytes, name: str, precision: str, threads: int = 0, expected: Signature | None = None) -> Graph:
    """A compiled graph; each thread that calls it has an inference request of its own."""
    core = package().Core()
    # Pinned threads of two processes would share one core of a machine that has others free.
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(content)
        outputs = [port.any_name for port in model.outputs]
        if expected:
            expected.refuse_others([port.any_name for port in model.inputs], outputs)
        if PRECISION_HINTS[precision] == "bf16":
            # OpenVINO would round an angle to bfloat16 before its sine, at 100 radians by up to a quarter; what leads
            # to an output stays float32. Of six MLPs, the error at random times was 1.05 to 1.31 times that at eighths,
            # which bfloat16 holds; now 0.96 to 1.03.
            model.add_outputs([node.output(0) for node in model.get_ordered_ops() if node.get_type_name() == "Sin"])
        settings["INFERENCE_PRECISION_HINT"] = PRECISION_HINTS[precision]
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise InvalidArtefact(f"OpenVINO refused {name}: {error}") from error
    ports = [compiled.output(output) for output in outputs]
    mine = threading.local()

    def call(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        results = mine.request.infer(dict(inputs))
        return [results[port] for port in ports]

    return call


def package() -> ModuleType:
    """OpenVINO, imported without openvino_telemetry: with it, each import reports to Google Analytics."""
    telemetry = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how an import is told to fail
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailable(f'OpenVINO is not here ({error}): pip install "pyflow-engine[openvino]"') from error
    finally:
        del sys.modules["openvino_telemetry"]
        if telemetry is not None:
            sys.modules["openvino_telemetry"] = telemetry
    return openvino
