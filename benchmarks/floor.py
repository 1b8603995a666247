"""What this machine can do at most: the fastest matrix products and copies that are here, and what a network needs.

The floor of a call is that of direct convolutions: its products at the measured rate, or its weights read once
from where they lie, whichever takes longer. Winograd's convolutions need fewer products and may go below it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyflow.spec import Spec

SIZES = (512, 1024, 2048)
BYTES = 2**28  # of the array that is read and copied: eight times the largest cache of the machine at hand
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Floor:
    """Products and sums a second by precision, and bytes a second read from memory, and read and written in a copy."""

    flop: dict[str, float]
    read: float
    copied: float

    def seconds(self, precision: str, flop: float, weights: int, batch: int) -> float:
        return max(batch * flop / self.flop[precision], read_seconds(weights * WEIGHT_BYTES[precision]))


def measured(rounds: int = 9, sizes: tuple[int, ...] = SIZES, size: int = BYTES) -> Floor:
    """On torch's number of threads. The best of the rounds: what disturbs makes a machine slower, never faster."""
    products = {
        "fp32": [_onnx_product, lambda n: _torch_product(n, torch.float32)],
        "bf16": [lambda n: _torch_product(n, torch.bfloat16)],
        "int8": [_int8_product],
    }
    rates = {
        name: max(2.0 * n**3 / _best(make(n), rounds) for make in makers for n in sizes)
        for name, makers in products.items()
    }
    source, target = torch.ones(size // 4), torch.ones(size // 4)
    copied = 2 * size / _best(lambda: target.copy_(source), rounds)
    return Floor(rates, size / read_seconds(size, rounds), copied)


def read_seconds(size: int, rounds: int = 9) -> float:
    """Of so many bytes, from the cache that they fit into."""
    return _best(torch.ones(max(1, size // 4)).sum, rounds)


def _best(call: Callable[[], object], rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
    return min(seconds)


def _torch_product(n: int, dtype: torch.dtype) -> Callable[[], object]:
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return lambda: torch.mm(a, b)


def _int8_product(n: int) -> Callable[[], object]:
    a, b = (torch.randint(-128, 128, (n, n), dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b)


def _onnx_product(n: int) -> Callable[[], object]:
    """ONNX Runtime's. torch's own float32 comes from MKL: 112 GFLOP/s on an AMD EPYC, where this makes 250."""
    a, b = (np.random.default_rng().standard_normal((n, n), dtype=np.float32) for _ in range(2))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [n, n])],
        [helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [n, n])],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def flop_of(model: nn.Module, spec: Spec) -> int:
    """Of one picture, products and sums, in convolutions, linear layers and attention."""
    one = torch.zeros(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.network.shape), one, one, one.long())
    return counter.get_total_flops()
