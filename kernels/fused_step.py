"""One row's guidance, update and mask in one pass over memory: the Triton twin of `pyflow.core.fused_step`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyflow.core import Row
from pyflow.errors import InvalidInput

from .machine import INTERPRETED, require_gpu

# 4 warps on 1024 elements: 8 a thread, which is one 16-byte access an operand in half precision and two in single.
# The interpreter pays for each program, whatever its size.
BLOCK = 32768 if INTERPRETED else 1024

# Without contraction to fused multiply-adds every product and sum rounds on its own, as the reference's do: float32 is
# then equal to the bit. The kernel waits for memory, so the extra instructions cost nothing.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _read(operand, at, inside):
    return tl.load(operand + at, mask=inside).to(tl.float32)


@triton.jit
def _add(total, term):
    return term if total is None else total + term


@triton.jit
def step_kernel(
    out, guided, x, cond, uncond, previous, noise, mask, image, noise0, a, b, h, n, ka, ks, g, size, BLOCK: tl.constexpr
):  # fmt: skip
    """An argument that is None is None at compile time too, so what has no coefficient is neither read nor added."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size

    if cond is not None:
        p = _read(cond, at, inside)
        if uncond is not None:
            u = _read(uncond, at, inside)
            p = u + g * (p - u)

    y = None
    if a is not None:
        y = _add(y, a * _read(x, at, inside))
    if b is not None:
        y = _add(y, b * p)
    if h is not None:
        y = _add(y, h * _read(previous, at, inside))
    if n is not None:
        y = _add(y, n * _read(noise, at, inside))

    if mask is not None:
        kept = None
        if ka is not None:
            kept = _add(kept, ka * _read(image, at, inside))
        if ks is not None:
            kept = _add(kept, ks * _read(noise0, at, inside))
        m = _read(mask, at, inside)
        y = m * y + (1 - m) * kept

    # After the last read, because `out` may be x and `guided` may be uncond or previous.
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)  # type: ignore[union-attr]  # every row has a term
    if guided is not None:
        tl.store(guided + at, p.to(guided.dtype.element_ty), mask=inside)


def fused_step(
    row: Row,
    *,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor | None = None,
    guidance: float = 1.0,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    image: Tensor | None = None,
    noise0: Tensor | None = None,
    out: Tensor | None = None,
    guided: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The new state, in `out` where that is given (it may be x), and the prediction that the next row calls `previous`.

    That is `cond` itself without guidance. With guidance it costs a write, so only the caller who gives `guided` to
    hold it gets it, and any other gets None. Sums are taken in float32 and rounded once, to x's dtype.
    """
    require_gpu(x.device)
    out = torch.empty_like(x) if out is None else out
    guided = None if uncond is None else guided
    _refuse_misfits(
        x, cond=cond, uncond=uncond, previous=previous, noise=noise, mask=mask, image=image, noise0=noise0,
        out=out, guided=guided,
    )  # fmt: skip

    a, b, h, n, ka, ks = (float(c) if c != 0.0 else None for c in (row.a, row.b, row.h, row.n, row.ka, row.ks))
    if mask is None:
        ka = ks = None
    p = cond if uncond is None else guided
    predicted = b is not None or guided is not None
    with torch.cuda.device_of(x):
        step_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            out,
            guided,
            x,
            cond if predicted else None,
            uncond if predicted else None,
            _operand("previous", previous, h),
            _operand("noise", noise, n),
            mask,
            _operand("image", image, ka),
            _operand("noise0", noise0, ks),
            *(a, b, h, n, ka, ks),
            float(guidance) if predicted and uncond is not None else None,
            x.numel(),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    return out, p


def _operand(name: str, operand: Tensor | None, coefficient: float | None) -> Tensor | None:
    """What the kernel is to read for this term: nothing where the row has no use for it."""
    if coefficient is None:
        return None
    if operand is None:
        raise InvalidInput(f"{name} is missing; expected a tensor, for this row multiplies it by {coefficient}")
    return operand


def _refuse_misfits(x: Tensor, **operands: Tensor | None) -> None:
    """The kernel knows neither strides nor shapes: everything has to lie in memory as x does."""
    if x.dtype not in DTYPES or not x.is_contiguous():
        raise InvalidInput(f"x is {_describe(x)}; expected contiguous float32, float16 or bfloat16")
    expected = (x.dtype, x.shape, x.device)
    for name, operand in operands.items():
        if operand is None:
            continue
        if (operand.dtype, operand.shape, operand.device) != expected or not operand.is_contiguous():
            raise InvalidInput(f"{name} is {_describe(operand)}; expected what x is: {_describe(x)}")


def _describe(tensor: Tensor) -> str:
    layout = "contiguous" if tensor.is_contiguous() else f"not contiguous (strides {tensor.stride()})"
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, {layout}"
