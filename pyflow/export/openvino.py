"""OpenVINO engines: float32 ONNX graphs, which OpenVINO lowers to the engine's precision where they are loaded."""

from dataclasses import replace

from torch import nn

from pyflow.engines import host
from pyflow.engines.openvino import package
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.spec import Spec

from .build import Built, Order, shapes_of
from .onnx import trace

PRECISIONS = ("fp32", "bf16")
BF16_FLAG = "avx512_bf16"  # CPUs with AMX have it too; without it OpenVINO computes in float32


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    package()
    if order.precision not in PRECISIONS:
        raise InvalidInput(
            f"precision is {order.precision!r}; OpenVINO runs {', '.join(PRECISIONS)} here: for another take --to onnx"
        )
    lowered = order.precision == "bf16"
    if lowered and BF16_FLAG not in host.cpu_flags():
        raise BackendUnavailable(
            f"precision is 'bf16' and this CPU lacks {BF16_FLAG}, which OpenVINO's bfloat16 needs: export fp32, or "
            "export on a CPU that has it"
        )
    shapes = shapes_of(model, spec, replace(order, precision="fp32"))
    # Each graph with its weights in its file: OpenVINO reads shared ones from the disk, not from what was verified.
    graphs = {f"{name}.onnx": trace(shape, spec).SerializeToString() for name, shape in shapes.items()}
    return Built(graphs, {"cpu": (BF16_FLAG,)} if lowered else {}, ("torch", "onnx", "openvino"))
