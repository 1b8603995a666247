"""ONNX Runtime: denoisers on the CPU through its C function table, everything else through its Python package.

A denoiser on the CPU needs neither torch nor the import of the onnxruntime package.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pyflow import native
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

from .manifest import DENOISER, Manifest
from .runner import Graph, LoopRunner, Runner, Signature, refuse_misfit, runner_of, signature

WEIGHTS = "weights.bin"  # of graphs that share them


class Provider(NamedTuple):
    name: str
    options: dict[str, str]


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", {}),
    "cuda": Provider("CUDAExecutionProvider", {"use_tf32": "0"}),  # TF32 keeps ten bits of a float32 product
    "tensorrt": Provider("TensorrtExecutionProvider", {}),
}
# Arithmetic on sizes, which ONNX Runtime keeps on the CPU by choice (its issue 17930). A network with attention has
# some, and session.disable_cpu_ep_fallback would refuse all of it.
OF_SIZES = {"Shape", "Slice", "Squeeze", "Unsqueeze", "Concat", "Gather", "Cast"}


def open_engine(manifest: Manifest, files: Mapping[str, bytes], threads: int, device: str) -> Runner:
    if device not in PROVIDERS:
        raise InvalidInput(f"device is {device!r}; ONNX Runtime knows {', '.join(PROVIDERS)}")
    if manifest.what != DENOISER or device != "cpu":
        return runner_of(
            manifest, lambda name: graph(files, f"{name}.onnx", threads, device, signature(manifest, name))
        )
    denoiser = native.onnx_denoiser(files["denoiser.onnx"], threads)
    refuse_misfit(denoiser, manifest)
    return LoopRunner(denoiser)


def graph(
    files: Mapping[str, bytes], name: str, threads: int = 0, device: str = "cpu", expected: Signature | None = None
) -> Graph:
    """A graph on one provider: where ONNX Runtime would run some of the network on the CPU instead, it is an error."""
    model = files[name]
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(f'ONNX Runtime is not here ({error}): pip install "pyflow-engine[onnx]"') from error
    provider, here = PROVIDERS[device], onnxruntime.get_available_providers()
    if provider.name not in here:
        raise BackendUnavailable(
            f"device is {device!r} and this onnxruntime has no {provider.name}, only {', '.join(here)}: pip uninstall "
            "onnxruntime, then pip install onnxruntime-gpu, on a machine with an NVIDIA GPU; or take device='cpu'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if WEIGHTS in files:  # those that were verified, not a path that the session would open again
        weights = files[WEIGHTS]
        options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[tuple(provider)])
    except Exception as error:  # its exceptions have no common class of their own
        raise InvalidArtefact(f"ONNX Runtime refused {name} on {provider.name}: {error}") from error
    _refuse_fallback(session, name, provider.name)
    outputs = [output.name for output in session.get_outputs()]
    if expected:
        expected.refuse_others([given.name for given in session.get_inputs()], outputs)

    def call(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return session.run(outputs, dict(inputs))

    return call


def _refuse_fallback(session: Any, name: str, provider: str) -> None:
    """ONNX Runtime runs on the CPU what a provider cannot, and all of it where the provider's libraries are missing."""
    assigned = session.get_provider_graph_assignment_info()
    strays = [(part.ep_name, node) for part in assigned if part.ep_name != provider for node in part.get_nodes()]
    wrong = sorted({f"{node.op_type} on {where}" for where, node in strays if node.op_type not in OF_SIZES})
    first = session.get_providers()[0]
    if first != provider:
        wrong = [f"its session is on {first}"]
    if wrong:
        raise BackendUnavailable(
            f"{name} would not run on {provider}: {', '.join(wrong)}; install the CUDA libraries that this "
            "onnxruntime-gpu asks for, or take device='cpu'"
        )
