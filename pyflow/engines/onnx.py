"""ONNX Runtime: denoisers on the CPU through its C function table, everything else through its Python package.

A denoiser on the CPU needs neither torch nor the import of the onnxruntime package.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyflow import native
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

from .manifest import DENOISER, Manifest
from .runner import Graph, LoopRunner, Runner, runner_of

WEIGHTS = "weights.bin"  # of graphs that share them
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def open_engine(manifest: Manifest, files: Mapping[str, bytes], threads: int, device: str) -> Runner:
    if device not in PROVIDERS:
        raise InvalidInput(f"device is {device!r}; ONNX Runtime knows {', '.join(PROVIDERS)}")
    if manifest.what != DENOISER or device != "cpu":
        return runner_of(manifest, lambda name: graph(files, f"{name}.onnx", threads, device))
    denoiser = native.onnx_denoiser(files["denoiser.onnx"], threads)
    shape = manifest.spec.network.shape
    if denoiser.shape != shape or set(denoiser.inputs) != set(manifest.inputs):
        raise InvalidArtefact(
            f"the model takes {denoiser.inputs} and makes {denoiser.shape}, its manifest says "
            f"{manifest.inputs} and {shape}; export it again"
        )
    return LoopRunner(denoiser)


def graph(files: Mapping[str, bytes], name: str, threads: int = 0, device: str = "cpu") -> Graph:
    """A graph on one provider alone: where ONNX Runtime would fall back to the CPU, it is an error."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(f'ONNX Runtime is not here ({error}): pip install "pyflow-engine[onnx]"') from error
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise BackendUnavailable(
            f"this onnxruntime has no {provider}, only {', '.join(onnxruntime.get_available_providers())}: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu, on a machine with an NVIDIA GPU"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    held = _add_weights(options, files, name) if WEIGHTS in files else []
    try:
        session = onnxruntime.InferenceSession(files[name], options, providers=[provider])
    except Exception as error:  # its exceptions have no common class of their own
        raise InvalidArtefact(f"ONNX Runtime refused {name} on {provider}: {error}") from error
    if session.get_providers()[0] != provider:
        raise BackendUnavailable(f"{name} would run on {session.get_providers()[0]}, not on {provider}")
    outputs = [output.name for output in session.get_outputs() if output.name != "images"]

    def call(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return session.run(outputs, dict(inputs))

    call.held = held  # type: ignore[attr-defined]  # the session reads these weights for as long as it lives
    return call


def _add_weights(options: Any, files: Mapping[str, bytes], name: str) -> list[Any]:
    """Give the session the weights that were verified, not a path that it would open again."""
    import onnx
    import onnxruntime

    model = onnx.load_from_string(files[name])
    weights = np.frombuffer(files[WEIGHTS], np.uint8)
    names, values = [], []
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            continue
        start, size = int(place["offset"]), int(place["length"])
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        names.append(tensor.name)
        values.append(
            onnxruntime.OrtValue.ortvalue_from_numpy(weights[start : start + size].view(kind).reshape(tensor.dims))
        )
    options.add_external_initializers(names, values)
    return values
