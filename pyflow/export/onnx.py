"""ONNX engines: torch modules as graphs with a dynamic batch, and several graphs over one file of weights."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyflow.engines.onnx import WEIGHTS
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.spec import Spec

from . import quantize
from .build import BATCH_LIMIT, Built, Order, Shape, shapes_of
from .shapes import FIXED, UNROLLED_ROWS

if TYPE_CHECKING:
    import onnx

SHARED_BYTES = 1024  # a smaller tensor stays in each graph


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    if order.precision == "bf16":
        raise InvalidInput("precision is 'bf16'; ONNX Runtime has no such convolutions, expected fp32, fp16 or int8")
    rows = [len(record.plan(spec)) for record in order.plans(spec)]
    if order.precision == "int8" and rows and max(rows) > UNROLLED_ROWS:
        raise InvalidInput(
            f"precision is 'int8' and a whole sampler has {max(rows)} rows; expected at most {UNROLLED_ROWS}, a longer "
            "one is a loop, which ONNX Runtime cannot calibrate: export fewer steps, or a denoiser"
        )
    graphs = {f"{name}.onnx": trace(shape, spec) for name, shape in shapes_of(model, spec, order).items()}
    if order.precision == "int8":
        graphs = quantize.quantized(graphs, spec, order)
    return Built(payload(graphs), packages=("torch", "onnx", "onnxruntime"))


def trace(shape: Shape, spec: Spec) -> "onnx.ModelProto":
    """The module as a graph whose inputs begin with the batch."""
    # It warns of torchvision's missing operators, which no network here has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1, max=BATCH_LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                shape.eval(),
                shape.examples(spec),
                input_names=list(shape.names),
                output_names=list(shape.outputs),
                dynamic_shapes={"inputs": tuple({} if name in FIXED else {0: batch} for name in shape.names)},
                dynamo=True,
                verbose=False,
            )
    except ImportError as error:
        raise BackendUnavailable(
            f'export needs onnx and onnxscript ({error}): pip install "pyflow-engine[export]"'
        ) from error
    assert program is not None  # what the dynamo exporter returns
    model = program.model_proto
    for graph in _graphs(model.graph):
        # Where each node came from in Python, and shapes that a runtime infers anew: two thirds of a small file.
        for node in graph.node:
            del node.metadata_props[:]
        del graph.value_info[:]
    _move_weights_into_loop(model.graph)
    return model


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """The graph and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _move_weights_into_loop(graph: "onnx.GraphProto") -> None:
    """ONNX Runtime lays weights out for its fast convolutions where both are in one graph.

    A row of the UNet of 1.4M, batches 1 and 16, one thread: 3.0 and 46.0 ms with the weights outside of the loop, 2.2
    and 32.5 ms inside, as in the denoiser alone (2 cores of an AMD EPYC with AVX512, 2026-11-21).
    """
    read = {name for node in graph.node for name in node.input}
    outside = [tensor for tensor in graph.initializer if tensor.name in read]
    inside = [tensor for tensor in graph.initializer if tensor.name not in read]
    for body in list(_graphs(graph))[1:]:
        body.initializer.extend(inside)
        del graph.initializer[:]
        graph.initializer.extend(outside)


def payload(graphs: Mapping[str, "onnx.ModelProto"]) -> dict[str, bytes]:
    """One graph as one file; several with their weights once, in a file beside them that any runtime finds.

    A loop keeps a copy of its own: ONNX Runtime takes shared weights from memory for the outermost graph only.
    """
    if len(graphs) == 1:
        return {name: graph.SerializeToString() for name, graph in graphs.items()}
    import onnx

    weights, places = bytearray(), dict[bytes, int]()
    files = {}
    for name, graph in graphs.items():
        for tensor in graph.graph.initializer:
            content = tensor.raw_data
            if len(content) < SHARED_BYTES:
                continue
            if content not in places:
                weights.extend(b"\0" * (-len(weights) % 64))
                places[content] = len(weights)
                weights.extend(content)
            onnx.external_data_helper.set_external_data(tensor, WEIGHTS, places[content], len(content))
            tensor.ClearField("raw_data")
        files[name] = graph.SerializeToString()
    return {**files, WEIGHTS: bytes(weights)}
