"""Native engines: the network lowered to operations, its weights packed, and each layer computed as is fastest here."""

from torch import nn
from tqdm import tqdm

from pyflow import certificate, native
from pyflow.certificate import ParityError
from pyflow.engines.graph import Graph
from pyflow.engines.manifest import BOUNDS, DENOISER, NETWORK, Bound
from pyflow.engines.runner import LoopRunner
from pyflow.errors import InvalidInput
from pyflow.spec import Spec

from . import tuning
from .build import Built, Order
from .calibration import ranges
from .lowering import lower
from .ways import DIRECT_FLOAT, WAYS, WINOGRAD4_FLOAT, Layer, Way, ways

MARGIN = 0.5  # of the bound, for what the certificate asks beyond the cases that are tried here


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    _refuse_other(order)
    precision, lowest = order.precision, _layers_of_the_lowest(model, spec, order.precision)
    calibrated = ranges(model, spec, order, lowest) if precision == "int8" else {}
    times = tuning.measure(model, spec, precision, calibrated)

    def lowered(choice: dict[str, Way]) -> Graph:
        return lower(model, spec, lambda layer: choice[layer.name], calibrated)

    graph = lowered(tuning.fastest(times))
    if precision == "fp32" and not _is_precise(graph, model, spec):
        tqdm.write("F(4,3) errs too much with these weights: their layers are computed by F(2,3), or directly")
        graph = lowered(tuning.fastest(times, without=(WINOGRAD4_FLOAT,)))
    return Built({NETWORK: graph.to_bytes()})


def _refuse_other(order: Order) -> None:
    for name, known in (("what", (DENOISER,)), ("precision", tuple(WAYS)), ("device", ("cpu",))):
        value = getattr(order, name)
        if value not in known:
            raise InvalidInput(
                f"{name} is {value!r}; a native engine is a denoiser under the C++ loop on the CPU, expected "
                f"{' or '.join(known)}: for another take --to onnx"
            )


def _layers_of_the_lowest(model: nn.Module, spec: Spec, precision: str) -> list[str]:
    """The layers that can be computed in what the precision is named after."""
    layers: list[Layer] = []

    def listed(layer: Layer) -> Way:
        layers.append(layer)
        return DIRECT_FLOAT

    lower(model, spec, listed)
    weights = WAYS[precision][0].weights
    lowest = [
        layer.name for layer in layers if any(way.weights == weights for way in ways(layer, precision, spec.network))
    ]
    if not lowest:
        raise InvalidInput(f"precision is {precision!r} and no layer of the network can be that; expected fp32")
    return lowest


def _is_precise(graph: Graph, model: nn.Module, spec: Spec) -> bool:
    """Whether the short cases of the certificate hold, with a margin."""
    relative = BOUNDS["fp32"].relative
    assert relative is not None
    tried = [
        case
        for case in certificate.cases(spec)
        if case.batch == certificate.LONG_BATCH and case.steps in certificate.STEPS and not case.masked
    ]
    expected = certificate.Expected(spec, tried, certificate.fresh_seed()).compute(model)
    runner = LoopRunner(native.network_denoiser(graph.to_bytes()))
    try:
        certificate.measure(runner, spec, tried, expected, Bound(relative=MARGIN * relative))
    except ParityError:
        return False
    return True
