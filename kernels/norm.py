"""Group norm, FiLM and SiLU of channels-last pictures in one kernel: what stands before each convolution of the UNet.

No network calls it yet: no profile on a GPU has told that it pays. The prediction to be measured: it reads x once from
memory and writes it once (the second and third reading of a group, at most 100 KB in half precision at 32x32, come from
the cache), 2 passes. torch eager makes 13 of channels-last x: to channels-first 2, statistics 1, norm 2, times scale 2,
plus shift 2, SiLU 2, back to channels last 2. At batch 256, 128 channels, 32x32 in bfloat16 that is 134 MB against
872 MB. At batch 1 there are only as many programs as groups, 8, so it can lose there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from pyflow.errors import InvalidInput

from .fused_step import DTYPES
from .machine import require_gpu

TILE = 4096  # elements that a program holds at once: 32 a thread
OPTIONS = {"num_warps": 4}
EPSILON = 1e-5


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    groups: int = 8,
) -> Tensor:
    """As the UNet says it, in float64, rounded once to x's dtype; torch's float32 errs by 1e-5 where the mean is 3."""
    h = F.group_norm(x.double(), groups, weight.double(), bias.double(), EPSILON)
    if scale is not None and shift is not None:
        h = h * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    return F.silu(h).to(x.dtype)


@triton.jit
def norm_kernel(
    out, x, weight, bias, scale, shift, film_stride, pixels, channels, epsilon,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (i, j) norms group j of picture i: the mean, then the squares around it, then the result.

    WIDTH channels are a group, PADDED of them the next power of two; BLOCK pixels are read at once.
    """
    picture, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane, column = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    channel = group * WIDTH + column
    at = picture * pixels * channels + lane[:, None] * channels + channel[None, :]
    real = column[None, :] < WIDTH

    total = tl.zeros((BLOCK, PADDED), tl.float32)
    for first in range(0, pixels, BLOCK):
        inside = (first + lane[:, None] < pixels) & real
        total += tl.load(x + at + first * channels, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(tl.sum(total, 1), 0) / (pixels * WIDTH)

    total = tl.zeros((BLOCK, PADDED), tl.float32)
    for first in range(0, pixels, BLOCK):
        inside = (first + lane[:, None] < pixels) & real
        value = tl.load(x + at + first * channels, mask=inside, other=0.0).to(tl.float32)
        around = tl.where(inside, value - mean, 0.0)
        total += around * around
    inverse = 1 / tl.sqrt(tl.sum(tl.sum(total, 1), 0) / (pixels * WIDTH) + epsilon)

    named = column < WIDTH
    factor = tl.load(weight + channel, mask=named, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=named, other=0.0).to(tl.float32)
    if scale is not None:
        told = 1 + tl.load(scale + picture * film_stride + channel, mask=named, other=0.0).to(tl.float32)
        offset = offset * told + tl.load(shift + picture * film_stride + channel, mask=named, other=0.0).to(tl.float32)
        factor *= told
    factor *= inverse
    for first in range(0, pixels, BLOCK):
        inside = (first + lane[:, None] < pixels) & real
        value = tl.load(x + at + first * channels, mask=inside, other=mean).to(tl.float32)
        h = (value - mean) * factor[None, :] + offset[None, :]
        tl.store(out + at + first * channels, (h * tl.sigmoid(h)).to(out.dtype.element_ty), mask=inside)


def norm_film_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    groups: int = 8,
) -> Tensor:
    """silu(group_norm(x) * (1 + scale) + shift), channels last as x is; scale and shift are (batch, channels)."""
    require_gpu(x.device)
    _refuse(x, weight, bias, scale, shift, groups)
    out = torch.empty_like(x)
    batch, channels, height, width = x.shape
    constants = constants_of(channels // groups)
    with torch.cuda.device_of(x):
        norm_kernel[(batch, groups)](
            out, x, weight, bias, scale, shift, 0 if scale is None else scale.stride(0), height * width, channels,
            EPSILON, **constants, **OPTIONS,
        )  # fmt: skip
    return out


def constants_of(width: int) -> dict[str, int]:
    padded = triton.next_power_of_2(width)
    return {"WIDTH": width, "PADDED": padded, "BLOCK": max(1, TILE // padded)}


def _refuse(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int) -> None:
    if x.dtype not in DTYPES or x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        raise InvalidInput(
            f"x is {x.dtype} {tuple(x.shape)} with strides {x.stride()}; expected float32, float16 or bfloat16 "
            "pictures that lie channels last: x.to(memory_format=torch.channels_last)"
        )
    batch, channels = x.shape[:2]
    if channels % groups:
        raise InvalidInput(f"x has {channels} channels; expected a multiple of groups={groups}")
    if (scale is None) != (shift is None):
        raise InvalidInput("one of scale and shift is None; expected both or neither")
    for name, given, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("scale", scale, (batch, channels)),
        ("shift", shift, (batch, channels)),
    ):
        if given is not None and (given.shape != shape or given.stride(-1) != 1 or given.device != x.device):
            raise InvalidInput(
                f"{name} is {tuple(given.shape)} with strides {given.stride()} on {given.device}; expected {shape}, "
                f"its channels side by side, on {x.device}"
            )
    if scale is not None and shift is not None and scale.stride(0) != shift.stride(0):
        raise InvalidInput(f"scale and shift have strides {scale.stride()} and {shift.stride()}; expected equal ones")
