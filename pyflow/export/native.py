"""Native engines: the network lowered to operations, its weights packed, and each layer computed as is fastest here."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from pyflow.engines.manifest import DENOISER, NETWORK
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.spec import Spec

from . import tuning
from .build import Built, Order
from .calibration import ranges
from .lowering import lower
from .ways import ATTENTION, DIRECT_FLOAT, GENTLER, WAYS, Layer, Way, ways


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    _refuse_other(order)
    lowest = _layers_of_the_lowest(model, spec, order.precision)
    calibrated = ranges(model, spec, order, lowest) if order.precision == "int8" else {}
    try:
        times = tuning.measure(model, spec, order.precision, calibrated)
    except InvalidArtefact as error:
        raise InvalidInput(f"the network is beyond what the native engine takes ({error}): take --to onnx") from error

    def built(without: Sequence[Way], gentler: Sequence[Sequence[Way]]) -> Built:
        choice = tuning.fastest(times, without)
        graph = lower(model, spec, lambda layer: choice[layer.name], calibrated, ATTENTION[order.precision])
        more_precise = partial(built, gentler[0], gentler[1:]) if gentler else None
        return Built({NETWORK: graph.to_bytes()}, more_precise=more_precise)

    return built([], GENTLER[order.precision])


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
