"""TensorRT engines: a plan of each graph, typed as the torch module is, for batches from 1 to 256."""

from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from pyflow.engines import host
from pyflow.engines.tensorrt import DEVICE, installed, package
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput
from pyflow.spec import Spec

from .build import Built, Order, shapes_of
from .onnx import trace
from .shapes import DTYPES, FIXED

BATCHES = (1, 16, 256)  # the smallest, the one that is tuned for, the largest
WHOLE_VERSION = 4  # numbers: a plan runs on the very release that built it


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    name = installed()
    gpu = host.gpu()
    if not gpu:
        raise BackendUnavailable(
            "an engine is published only after its proof, and that of a TensorRT engine needs an NVIDIA GPU, which is "
            "not here (or torch is its CPU build): export where it will run, or take --to onnx"
        )
    if order.device != DEVICE:
        raise InvalidInput(f"device is {order.device!r}; a TensorRT engine runs on {DEVICE!r}: ask for {DEVICE!r}")
    if order.precision not in DTYPES:
        raise InvalidInput(f"precision is {order.precision!r}; expected one of {', '.join(DTYPES)}, or --to onnx")
    module, files = package(name), {}
    for graph, shape in shapes_of(model, spec, order).items():
        # TensorRT has no uint8 inside a graph (its parser's words), and the loop makes pictures of the states itself.
        shape.outputs = tuple(output for output in shape.outputs if output != "images")
        files[f"{graph}.plan"] = build_plan(module, trace(shape, spec).SerializeToString())
    needs = {} if name == "tensorrt-rtx" else {"gpu": gpu}  # RTX compiles for the GPU that it finds
    return Built(files, {name: host.release(name, WHOLE_VERSION), **needs}, ("torch", "onnx", name))


class Definition(NamedTuple):
    """What TensorRT builds a plan from."""

    builder: Any
    network: Any
    config: Any
    profile: Any
    parser: Any  # whose weights the network reads until it is built


def build_plan(module: ModuleType, model: bytes) -> bytes:
    """The plan of an ONNX model; `module` is tensorrt or tensorrt_rtx, of which the latter builds without a GPU too."""
    made = define(module, model)
    plan = made.builder.build_serialized_network(made.network, made.config)
    if plan is None:
        raise BackendUnavailable(f"{module.__name__} could not build the plan: its log, above, says why")
    return bytes(plan)


def define(module: ModuleType, model: bytes) -> Definition:
    """A network typed as the ONNX model is, its inputs free in their batch, and float32 without TF32."""
    logger = module.Logger(module.Logger.ERROR)
    builder = module.Builder(logger)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, logger)
    if not parser.parse(model):
        faults = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise InvalidArtefact(f"{module.__name__} refused the ONNX model: {faults}")
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)  # it keeps ten bits of a float32 product
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        given = network.get_input(index)
        if given.name not in FIXED:
            profile.set_shape(given.name, *((batch, *tuple(given.shape)[1:]) for batch in BATCHES))
    config.add_optimization_profile(profile)
    return Definition(builder, network, config, profile, parser)
