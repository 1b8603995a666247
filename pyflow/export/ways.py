"""The ways to compute a layer of a native network, and which of them a layer may take."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyflow.engines.graph import Algorithm, Type
from pyflow.spec import Network

from .quantize import float_layers

DIRECT, WINOGRAD2, WINOGRAD4, WINOGRAD2X4 = Algorithm
TILES = {WINOGRAD2: (2, 2), WINOGRAD4: (4, 4), WINOGRAD2X4: (2, 4)}  # rows and columns of the outputs made together
INT8_PRODUCTS = 65536
PRECISE = ("enter", "leave", "condition", "film")  # they are float32 in every precision


class Layer(NamedTuple):
    """A convolution, or a linear layer as one of a 1x1 picture; height and width are its input's."""

    name: str
    inputs: int
    outputs: int
    taps: int
    stride: int
    height: int
    width: int


class Way(NamedTuple):
    algorithm: Algorithm
    weights: Type

    @property
    def input(self) -> Type:
        """Winograd's transforms read float32, whatever their products are of."""
        lowered = {Type.F32: Type.F32, Type.BF16: Type.BF16, Type.S8: Type.U8}
        return lowered[self.weights] if self.algorithm == DIRECT else Type.F32

    def __str__(self) -> str:
        return f"{self.algorithm.name} {self.weights.name}".lower()


Choose = Callable[[Layer], Way]

# Of the products of attention. Its scores and sums stay float32.
ATTENTION = {"fp32": Type.F32, "bf16": Type.BF16, "int8": Type.BF16}

# Those of a precision, the best guess first, and from the least to the most precise. int8 in F(2,3) errs by 7e-2: it is
# none.
DIRECT_FLOAT, WINOGRAD2_FLOAT, WINOGRAD4_FLOAT = (
    Way(algorithm, Type.F32) for algorithm in (DIRECT, WINOGRAD2, WINOGRAD4)
)
FLOAT_WAYS = (WINOGRAD4_FLOAT, WINOGRAD2_FLOAT, DIRECT_FLOAT)
WINOGRAD4_BFLOAT16, WINOGRAD2X4_BFLOAT16 = Way(WINOGRAD4, Type.BF16), Way(WINOGRAD2X4, Type.BF16)
BFLOAT16_WAYS = (WINOGRAD4_BFLOAT16, WINOGRAD2X4_BFLOAT16, Way(WINOGRAD2, Type.BF16), Way(DIRECT, Type.BF16))
WAYS: dict[str, Sequence[Way]] = {
    "fp32": FLOAT_WAYS,
    "bf16": (*BFLOAT16_WAYS, *FLOAT_WAYS),
    "int8": (Way(DIRECT, Type.S8), *BFLOAT16_WAYS, *FLOAT_WAYS),
}


# What an engine that fails its certificate is built again without, and then again.
GENTLER: dict[str, Sequence[Sequence[Way]]] = {
    # F(2,3) errs least: on three trained networks its PSNR was 1.3 to 3.3 dB above those of F(4,3) and of direct sums
    # (certificates of runs/demo and runs/cifar, AMD EPYC with AVX512-BF16, 2026-11-21).
    "fp32": [[WINOGRAD4_FLOAT, DIRECT_FLOAT]],
    "bf16": [[WINOGRAD4_BFLOAT16], [WINOGRAD4_BFLOAT16, WINOGRAD2X4_BFLOAT16]],
    "int8": [[WINOGRAD4_BFLOAT16, WINOGRAD2X4_BFLOAT16]],
}


def ways(layer: Layer, precision: str, network: Network) -> list[Way]:
    """Those that the layer may take, the best guess first."""
    return [way for way in WAYS[precision] if _fits(way, layer) and _is_precise_enough(way, layer, network)]


def preferring(way: Way, precision: str, network: Network) -> Choose:
    """Each layer computed this way where it may be, else by its best guess."""

    def choose(layer: Layer) -> Way:
        known = ways(layer, precision, network)
        return way if way in known else known[0]

    return choose


def _fits(way: Way, layer: Layer) -> bool:
    if way.algorithm == DIRECT:
        # A buffer of bfloat16 or uint8 has channels in fours, which products take together; a sum of int8 has 32 bits.
        few = way.weights != Type.S8 or layer.taps**2 * layer.inputs <= INT8_PRODUCTS
        return way.weights == Type.F32 or (layer.inputs % 4 == 0 and few)
    rows, columns = TILES[way.algorithm]
    pairs = way.weights == Type.F32 or layer.inputs % 2 == 0
    whole = layer.height % rows == 0 and layer.width % columns == 0 and layer.height >= 2 * rows
    return layer.taps == 3 and layer.stride == 1 and whole and pairs


def _is_precise_enough(way: Way, layer: Layer, network: Network) -> bool:
    if layer.name.partition(".")[0] in PRECISE:
        return way.weights == Type.F32
    # At full resolution an error reaches the picture as it is. Random networks of 1.4M, 9.6M and 38M err by 1.2e-2 to
    # 1.5e-2 of the largest value with F(4,3) in every layer, by 8e-3 to 1e-2 so, and by 5e-3 to 6e-3 in F(2,3) alone.
    if way == WINOGRAD4_BFLOAT16 and layer.height == network.shape[1]:
        return False
    return way.weights != Type.S8 or not any(f".{kept}." in f".{layer.name}." for kept in float_layers(network))
