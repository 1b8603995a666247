"""Native engines: the network lowered to operations, its weights packed, and each layer computed as is fastest here."""

from dataclasses import replace
from functools import partial

from torch import nn

from pyflow.engines.manifest import DENOISER, NETWORK
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.spec import Spec

from . import tuning
from .build import Built, Order
from .calibration import ranges
from .lowering import lower
from .ways import ATTENTION, DIRECT_FLOAT, WAYS, WINOGRAD2_FLOAT, Choose, Layer, Way, preferring, ways


def build(model: nn.Module, spec: Spec, order: Order) -> Built:
    _refuse_other(order)
    lowest = _layers_of_the_lowest(model, spec, order.precision)
    calibrated = ranges(model, spec, order, lowest) if order.precision == "int8" else {}
    try:
        choice = tuning.fastest(tuning.measure(model, spec, order.precision, calibrated))
    except InvalidArtefact as error:
        raise InvalidInput(f"the network is beyond what the native engine takes ({error}): take --to onnx") from error

    def built(choose: Choose) -> Built:
        return Built({NETWORK: lower(model, spec, choose, calibrated, ATTENTION[order.precision]).to_bytes()})

    made = built(lambda layer: choice[layer.name])
    if order.precision != "fp32":
        return made
    # F(2,3) errs least: on three trained networks its PSNR was 1.3 to 3.3 dB above those of F(4,3) and of direct sums
    # (certificates of runs/demo and runs/cifar, AMD EPYC with AVX512-BF16, 2026-11-21).
    return replace(made, more_precise=partial(built, preferring(WINOGRAD2_FLOAT, order.precision, spec.network)))


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
