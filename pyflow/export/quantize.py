"""int8 graphs: ONNX Runtime's static quantisation, calibrated on what the graphs are given while they sample."""

import itertools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyflow import core
from pyflow.certificate import GUIDANCES, Case, request_of
from pyflow.engines.manifest import SAMPLER, Manifest
from pyflow.engines.onnx import graph as opened
from pyflow.engines.runner import Graph, Runner, runner_of
from pyflow.errors import InvalidInput
from pyflow.spec import Network, Spec, UNet

from .build import Order
from .shapes import Denoiser

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, np.ndarray]

# Figures here: the lowest PSNR of a certificate in dB, of the teacher of `make demo`, then of the tests' tiny UNet with
# random weights; ONNX Runtime 1.31, AMD EPYC with AVX512-VNNI, 2026-11-21.
# Calibrated on 8, 16 and 64 pictures alike, within the noise of a seed; on plans of one step alone 1.5 and 4 less; on
# as many random states, times and labels 1.6 and 0 less, and where no norm hides the scale of a state, 10 to 30 less
# (an MLP on data 16 times as wide as the noise). Plans of every solver widen the ranges: 3 and 1 less.
STEPS, PICTURES, SEED = (1, 2, 4, 8), 16, 8
# These layers stay float32: with them in int8, skips cost 1.5 and 3, the condition up to 2, the first layer 1.2, the
# last one 4.4. The FiLM layer and attention's 1x1 convolutions cost nothing and make the file a quarter smaller.
FLOAT_LAYERS = ("enter", "leave", "condition", "skip")


def float_layers(network: Network) -> tuple[str, ...]:
    """The layers that stay float32; of a UNet also the blocks at full resolution on the way up.

    Their error reaches the picture as it is: 28.8 dB (a refusal) and 34.9 with them in int8, 33.0 and 38.5 without.
    The teacher's batch of 16 takes 8.1 ms in float32, 4.6 and 6.0 ms so; with its last block alone in float32, 30.5 dB
    and 5.1 ms.
    """
    if not isinstance(network, UNet):
        return FLOAT_LAYERS
    levels, blocks = len(network.multipliers), network.blocks + 1
    end = levels * blocks + levels - 1
    return (*FLOAT_LAYERS, *(f"up.{index}" for index in range(end - blocks, end)))


def quantized(graphs: Mapping[str, "onnx.ModelProto"], spec: Spec, order: Order) -> dict[str, "onnx.ModelProto"]:
    feeds = trajectories(graphs, spec, order)
    return {name: with_int8(graph, feeds[name], spec.network) for name, graph in graphs.items()}


def trajectories(
    graphs: Mapping[str, "onnx.ModelProto"], spec: Spec, order: Order, seed: int = SEED
) -> dict[str, list[Feed]]:
    """All that each graph is given while the runner of such an engine samples with all labels, guided and not."""
    files = {name: graph.SerializeToString() for name, graph in graphs.items()}
    feeds: dict[str, list[Feed]] = {name: [] for name in graphs}

    def recorded(name: str) -> Graph:
        call = opened(files, f"{name}.onnx")

        def record(feed: Feed) -> Sequence[np.ndarray]:
            feeds[f"{name}.onnx"].append({key: value.copy() for key, value in feed.items()})
            return call(feed)

        return record

    run_trajectories(runner_of(_draft(spec, order), recorded), spec, order, seed)
    return feeds


def run_trajectories(runner: Runner, spec: Spec, order: Order, seed: int = SEED) -> None:
    """Sample all that an engine is calibrated on; whoever calibrates watches the runner's network."""
    for number, case in enumerate(_cases(spec, order)):
        runner.run(request_of(case, spec, seed + number))


def _draft(spec: Spec, order: Order) -> Manifest:
    """As much of a manifest as a runner reads."""
    return Manifest(
        backend="onnx",
        what=order.what,
        precision=order.precision,
        spec=spec,
        inputs=Denoiser.inputs_of(spec),
        weights_sha256="",
        files={},
        requires={},
        versions={},
        certificate=None,
        plans=order.plans(spec),
    )


def _cases(spec: Spec, order: Order) -> list[Case]:
    if order.what == SAMPLER:
        return [Case(record.plan(spec), PICTURES, record.guidance, masked=False) for record in order.plans(spec)]
    plans = [spec.plan(core.uniform_grid(steps)) for steps in STEPS]
    guidances = GUIDANCES if spec.null_label else (1.0,)
    masked = (False, True) if spec.network.sees_mask else (False,)
    return [Case(plan, PICTURES, *setting) for plan in plans for setting in itertools.product(guidances, masked)]


def with_int8(graph: "onnx.ModelProto", feeds: Sequence[Feed], network: Network) -> "onnx.ModelProto":
    """The graph with its large layers in int8, and their inputs in the ranges that the feeds show."""
    import onnx
    from onnxruntime import quantization

    layers = _layers(graph, float_layers(network))
    if not layers:
        raise InvalidInput("precision is 'int8' and the network has no layer between its first and last; expected fp32")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(graph.SerializeToString())
        quantization.quantize_static(
            source,
            target,
            _Reader(feeds),
            nodes_to_quantize=layers,
            # The teacher, batch 16, one thread: 8.2 ms in float32, 4.5 ms so, 8.7 ms with int8 activations, which
            # ONNX Runtime has no fast convolution for on x86. Per channel gains 0.3 to 1 dB at the same speed.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        made = onnx.load(target)
    del made.graph.value_info[:]
    return made


def _layers(graph: "onnx.ModelProto", kept: Sequence[str]) -> list[str]:
    """The nodes of the layers that are quantised; a layer is known by its weight's name."""
    weights = {
        tensor.name
        for tensor in graph.graph.initializer
        if tensor.name.endswith(".weight") and not any(f".{layer}." in tensor.name for layer in kept)
    }
    return [n.name for n in graph.graph.node if n.op_type in ("Conv", "Gemm") and n.input[1] in weights]


class _Reader:
    """Feeds as ONNX Runtime's calibration asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger at each call."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
