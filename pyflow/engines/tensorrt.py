"""TensorRT and TensorRT-RTX: plans, as they call a serialised graph, run on the GPU over torch's tensors."""

import threading
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput

from . import host
from .manifest import Manifest
from .runner import Graph, Runner, Signature, runner_of, signature

PACKAGES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}  # the modules by their distributions, first choice first
DEVICE = "cuda"


def open_engine(manifest: Manifest, files: Mapping[str, bytes], threads: int, device: str) -> Runner:
    """The GPU has threads of its own: the number given is of no use here."""
    if device != DEVICE:
        raise InvalidInput(f"device is {device!r}; a TensorRT engine runs on {DEVICE!r}: ask for device={DEVICE!r}")
    builder = next((name for name in PACKAGES if name in manifest.requires), None)
    if builder is None:
        raise InvalidArtefact(
            f"the engine requires {manifest.requires}; expected one of {', '.join(PACKAGES)}: export it again"
        )
    module = package(builder)

    def opened(name: str) -> Graph:
        plan = load(module, files[f"{name}.plan"], name)
        return graph(module, plan, DEVICE, signature(manifest, name))

    return runner_of(manifest, opened)


def installed() -> str:
    """The distribution to build with: TensorRT, else TensorRT-RTX."""
    for name in PACKAGES:
        if host.release(name):
            return name
    raise BackendUnavailable(
        f'neither {" nor ".join(PACKAGES)} is installed: pip install "pyflow-engine[tensorrt]", or take --to onnx'
    )


def package(name: str) -> ModuleType:
    try:
        return import_module(PACKAGES[name])
    except ImportError as error:
        raise BackendUnavailable(f'{name} is not here ({error}): pip install "pyflow-engine[tensorrt]"') from error


def load(module: ModuleType, content: bytes, name: str) -> Any:
    """TensorRT's engine of a plan."""
    plan = module.Runtime(module.Logger(module.Logger.ERROR)).deserialize_cuda_engine(content)
    if plan is None:
        raise InvalidArtefact(f"{module.__name__} refused {name}.plan on this GPU: export it again on this machine")
    return plan


def graph(module: ModuleType, plan: Any, device: str, expected: Signature | None = None) -> Graph:
    """TensorRT's engine as a graph; each thread that calls it has an execution context of its own."""
    torch = host.torch_for("a TensorRT engine")
    kinds = {
        module.DataType.FLOAT: torch.float32,
        module.DataType.HALF: torch.float16,
        module.DataType.BF16: torch.bfloat16,
        module.DataType.INT64: torch.int64,
    }
    names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
    inputs = [name for name in names if plan.get_tensor_mode(name) == module.TensorIOMode.INPUT]
    outputs = {name: kinds[plan.get_tensor_dtype(name)] for name in names if name not in inputs}
    if expected:
        expected.refuse_others(inputs, list(outputs))
    mine = threading.local()

    def call(given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(mine, "context"):
            mine.context = plan.create_execution_context()
        context = mine.context
        # Held until the results are back: the context knows only their addresses. Copies: the arrays may be views.
        fed = {name: torch.from_numpy(np.array(given[name], order="C")).to(device) for name in inputs}
        for name, tensor in fed.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                smallest, _, largest = (tuple(shape) for shape in plan.get_tensor_profile_shape(name, 0))
                raise InvalidInput(
                    f"{name} has shape {tuple(tensor.shape)}; this engine takes {smallest} to {largest}: sample in "
                    "smaller batches (guidance doubles one)"
                )
        made = {
            name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device=device)
            for name, kind in outputs.items()
        }
        for name, tensor in (fed | made).items():
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream().cuda_stream if device == DEVICE else 0
        if not context.execute_async_v3(stream):
            raise BackendUnavailable("TensorRT could not run the engine: its log, above, says why")
        return [tensor.cpu().numpy() for tensor in made.values()]

    return call
