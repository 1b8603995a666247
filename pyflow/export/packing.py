"""Weights of a convolution as the native kernels read them: panels of output channels, products of 4 bytes together.

A panel has 32 output channels, the last one 16 where no more remain. It lies as [tap][inputs / q][channels][q]: q
inputs are multiplied in one step, 1 in float32, 2 in bfloat16, 4 in int8. What lacks to whole panels and steps is 0.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyflow.engines.graph import Algorithm, Type

PANEL, NARROW_PANEL = 32, 16
STEP = {Type.F32: 1, Type.BF16: 2, Type.S8: 4}  # inputs that are multiplied together
# G of Winograd's F(2,3): the taps g of a 3x3 convolution become the 4x4 of G g G^T, which as one row is kron(G, G) g.
WINOGRAD2 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

Floats = npt.NDArray[np.float32]


class Packed(NamedTuple):
    """The arrays of a convolution; `scales` is of int8 weights only."""

    weights: npt.NDArray[np.generic]
    bias: Floats
    scales: Floats | None


class Range(NamedTuple):
    """What a uint8 stands for: (q - zero) * scale."""

    scale: float
    zero: int


def pack(taps: Floats, bias: Floats, algorithm: Algorithm, type: Type, range: Range | None = None) -> Packed:
    """`taps` is (outputs, inputs, height, width); `range` is of the input, where the weights are int8."""
    flat = taps.reshape(*taps.shape[:2], -1)
    if type == Type.S8:
        assert range is not None
        scales = symmetric_scales(flat)
        whole = np.rint(flat / scales[:, None, None])
        scales *= np.float32(range.scale)
        bias = (bias - range.zero * scales * whole.sum((1, 2), dtype=np.float64)).astype(np.float32)
        return Packed(_panels(whole.astype(np.int8), type), _padded(bias), _padded(scales))
    if type == Type.F32:
        return Packed(_panels(flat, type), _padded(bias), None)
    winograd = np.kron(WINOGRAD2, WINOGRAD2) if algorithm == Algorithm.WINOGRAD2 else None
    exact = flat if winograd is None else flat.astype(np.float64) @ winograd.T
    return Packed(_panels(bfloat16(exact), type), _padded(bias), None)


def symmetric_scales(flat: Floats) -> Floats:
    """One for each output channel: its largest weight is 127."""
    largest = np.abs(flat).max((1, 2))
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)


def bfloat16(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Rounded once, to the nearest of 8 bits, ties to even."""
    mantissa, exponent = np.frexp(values)
    rounded = np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def _panels(flat: npt.NDArray[np.generic], type: Type) -> npt.NDArray[np.generic]:
    """(outputs, inputs, taps) in the order of the panels, one after the other."""
    outputs, inputs, taps = flat.shape
    step = STEP[type]
    padded = np.zeros((padded_outputs(outputs), -(-inputs // step), step, taps), flat.dtype)
    padded.reshape(len(padded), -1, taps)[:outputs, :inputs] = flat
    wide = len(padded) // PANEL * PANEL
    panels = [
        part.reshape(-1, width, *padded.shape[1:]).transpose(0, 4, 2, 1, 3).ravel()
        for part, width in ((padded[:wide], PANEL), (padded[wide:], NARROW_PANEL))
    ]
    return np.concatenate(panels)


def _padded(values: Floats) -> Floats:
    return np.pad(values, (0, padded_outputs(len(values)) - len(values)))


def padded_outputs(outputs: int) -> int:
    wide, rest = divmod(outputs, PANEL)
    return wide * PANEL + (0 if rest == 0 else NARROW_PANEL if rest <= NARROW_PANEL else PANEL)
