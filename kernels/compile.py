"""Compile every kernel for a GPU that need not be here, and count what came out: `python -m pyflow.kernels.compile`."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from pyflow.errors import BackendUnavailable, InvalidInput

from . import machine
from .fused_step import BLOCK as STEP_BLOCK
from .fused_step import OPTIONS as STEP_OPTIONS
from .fused_step import step_kernel
from .norm import OPTIONS as NORM_OPTIONS
from .norm import constants_of, norm_kernel
from .philox import BLOCK as PHILOX_BLOCK
from .philox import normal_kernel, words_kernel

DTYPES = ("fp32", "fp16", "bf16")

# What a row computes: the tensors and the coefficients that `step_kernel` is given for it.
STEPS = {
    "jump": ("cond", "b"),
    "plain": ("x cond", "a b"),
    "noise": ("x cond noise", "a b n"),
    "history": ("x cond previous", "a b h"),
    "mask": ("x cond mask image noise0", "a b ka ks"),
    "last mask": ("x cond mask image", "a b ka"),
    "guided": ("x cond uncond", "a b g"),
    "guided, kept": ("x cond uncond guided", "a b g"),
    "everything": ("x cond uncond previous noise mask image noise0 guided", "a b h n ka ks g"),
}

NORM_WIDTH = 16  # channels a group: 128 in 8 groups, the UNet of 36M at full resolution
NORMS = {"norm": "x weight bias", "norm, FiLM": "x weight bias scale shift"}


class Compiled(NamedTuple):
    """One variant. Loads and stores are the instructions of one thread; a wide one moves 16 bytes."""

    kernel: str
    variant: str
    dtype: str
    ptx_bytes: int
    cubin_bytes: int
    registers: int
    loads: int
    wide_loads: int
    stores: int
    wide_stores: int
    contractions: int  # float32 multiply-adds that round once where the reference rounds twice


def compile_for(target: str = "sm_90") -> list[Compiled]:
    """Every variant of every kernel, compiled ahead of time to PTX and cubin."""
    if machine.INTERPRETED:
        raise BackendUnavailable("under TRITON_INTERPRET there is nothing to compile; unset it before Python starts")
    if not (chip := re.fullmatch(r"sm_(\d+)", target)):
        raise InvalidInput(f"target is {target!r}; expected sm_ and a number, such as sm_90")
    gpu = GPUTarget("cuda", int(chip[1]), 32)
    return [
        _count(variant, dtype, triton.compile(source, target=gpu, options=options))
        for variant, dtype, source, options in _variants()
    ]


def _variants() -> Iterator[tuple[str, str, ASTSource, dict[str, Any]]]:
    for dtype in DTYPES:
        for variant, (tensors, coefficients) in STEPS.items():
            types = dict.fromkeys(f"out {tensors}".split(), f"*{dtype}") | dict.fromkeys(coefficients.split(), "fp32")
            yield variant, dtype, _source(step_kernel, types | {"size": "i32"}, {"BLOCK": STEP_BLOCK}), STEP_OPTIONS
    for dtype in DTYPES:
        types = {"out": f"*{dtype}"} | dict.fromkeys(("seed", "first", "row", "size"), "i32")
        yield "normal", dtype, _source(normal_kernel, types, {"BLOCK": PHILOX_BLOCK}), {}
    for dtype in DTYPES:
        for variant, tensors in NORMS.items():
            sizes = dict.fromkeys(("film_stride", "pixels", "channels"), "i32") | {"epsilon": "fp32"}
            types = dict.fromkeys(f"out {tensors}".split(), f"*{dtype}") | sizes
            yield variant, dtype, _source(norm_kernel, types, constants_of(NORM_WIDTH)), NORM_OPTIONS
    types = dict.fromkeys(("out", "counter", "key"), "*u32") | {"count": "i32"}
    yield "words", "u32", _source(words_kernel, types, {"BLOCK": PHILOX_BLOCK}), {}


def _source(kernel: triton.JITFunction, types: dict[str, str], constants: dict[str, int]) -> ASTSource:
    """As a launch specialises it: what is not given is None, tensors start at and sizes are multiples of 16."""
    names = kernel.arg_names
    return ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={name: constants.get(name) for name in names if name not in types},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if name in ("size", "channels") or types.get(name, "").startswith("*")
        },
    )


def _count(variant: str, dtype: str, compiled: CompiledKernel) -> Compiled:
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    # libdevice reads its tables for sine and cosine through ld.global.nc; Triton's own loads never are.
    loads, stores = re.findall(r"\bld\.global\.(?!nc)\S+", ptx), re.findall(r"\bst\.global\.\S+", ptx)
    return Compiled(
        compiled.metadata.name,
        variant,
        dtype,
        len(ptx),
        len(cubin),
        _registers(cubin),
        len(loads),
        loads.count("ld.global.v4.b32"),
        len(stores),
        stores.count("st.global.v4.b32"),
        len(re.findall(r"\bfma\.\S*f32", ptx)),
    )


def _registers(cubin: bytes) -> int:
    with TemporaryDirectory() as directory:
        path = Path(directory, "kernel.cubin")
        path.write_bytes(cubin)
        report = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-res-usage", str(path)], text=True)
    (registers,) = re.findall(r"REG:(\d+)", report)
    return int(registers)


def _table(rows: list[Compiled]) -> str:
    cells = [Compiled._fields, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


if __name__ == "__main__":
    print(_table(compile_for()))
