"""Noise that belongs to the picture, drawn where the picture is: the Triton twin of `pyflow.noise`.

`tl.randn` is Philox4x32-10 too, but lays out key and counter in its own way and draws other numbers.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .machine import INTERPRETED, require_gpu

# Counters a program; each makes four normals. The interpreter pays for each program, whatever its size.
BLOCK = 4096 if INTERPRETED else 256

_MULTIPLIER0 = tl.constexpr(0xD2511F53)
_MULTIPLIER1 = tl.constexpr(0xCD9E8D57)
_KEY_STEP0 = tl.constexpr(0x9E3779B9)
_KEY_STEP1 = tl.constexpr(0xBB67AE85)
_CELL32 = tl.constexpr(2.0**-32)
_CELL24 = tl.constexpr(2 * math.pi * 2.0**-24)


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds on uint32, whose sums wrap and whose products `umulhi` completes."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, _MULTIPLIER0), c0 * _MULTIPLIER0
        high1, low1 = tl.umulhi(c2, _MULTIPLIER1), c2 * _MULTIPLIER1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _KEY_STEP0, k1 + _KEY_STEP1
    return c0, c1, c2, c3


@triton.jit
def _box_muller(radius_word, angle_word):
    """Two normals of two words. In float64, for near u=1 a float32 logarithm keeps no digit of the 32-bit radius; the
    cost drowns in the network call that each row makes anyway.
    """
    radius = tl.sqrt(-2.0 * tl.log((radius_word.to(tl.float64) + 0.5) * _CELL32))
    angle = ((angle_word >> 8).to(tl.float64) + 0.5) * _CELL24
    return (radius * tl.cos(angle)).to(tl.float32), (radius * tl.sin(angle)).to(tl.float32)


@triton.jit(do_not_specialize=["seed", "first", "row"])
def normal_kernel(out, seed, first, row, size, BLOCK: tl.constexpr):
    """Program (i, j) draws block j of picture first+i. Seeds and rows are not specialised on: no recompiling for 1."""
    picture, chunk = tl.program_id(0), tl.program_id(1)
    counter = (chunk * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32)
    zeros = tl.zeros_like(counter)
    key = seed.to(tl.uint32), first.to(tl.uint32) + picture.to(tl.uint32)
    w0, w1, w2, w3 = _philox(counter, zeros + row.to(tl.uint32), zeros, zeros, key[0], key[1])
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    normals = tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))  # z0 z1 z2 z3 of each counter in turn

    at = chunk * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(out + picture.to(tl.int64) * size + at, normals.to(out.dtype.element_ty), mask=at < size)


@triton.jit
def words_kernel(out, counter, key, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    w0, w1, w2, w3 = _philox(
        tl.load(counter + 4 * at, mask=inside),
        tl.load(counter + 4 * at + 1, mask=inside),
        tl.load(counter + 4 * at + 2, mask=inside),
        tl.load(counter + 4 * at + 3, mask=inside),
        tl.load(key + 2 * at, mask=inside),
        tl.load(key + 2 * at + 1, mask=inside),
    )
    tl.store(out + 4 * at, w0, mask=inside)
    tl.store(out + 4 * at + 1, w1, mask=inside)
    tl.store(out + 4 * at + 2, w2, mask=inside)
    tl.store(out + 4 * at + 3, w3, mask=inside)


def normal(
    seed: int,
    first: int,
    pictures: int,
    size: int,
    row: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(pictures, size): the noise of pictures first, first+1, ... of this seed for row `row` (0: the start).

    Any dtype gets the float32 normals, rounded once more.
    """
    device = torch.device(device)
    require_gpu(device)
    out = torch.empty(pictures, size, device=device, dtype=dtype)
    with torch.cuda.device_of(out):
        normal_kernel[(pictures, triton.cdiv(size, 4 * BLOCK))](out, seed, first, row, size, BLOCK=BLOCK)
    return out


def words(counter: Tensor, key: Tensor) -> Tensor:
    """Bare Philox4x32-10: uint32 (count, 4) counters and (count, 2) keys to (count, 4) words."""
    require_gpu(counter.device)
    out, count = torch.empty_like(counter), counter.shape[0]
    with torch.cuda.device_of(out):
        words_kernel[(triton.cdiv(count, BLOCK),)](out, counter, key, count, BLOCK=BLOCK)
    return out
