"""Triton's `fused_step` against the reference: every variant, what it leaves unread, refuses, and compiles to.

Nothing contracts a product and a sum into one rounding, so float32 and float16 are equal to the bit on every machine.
Triton's interpreter truncates when it stores bfloat16, where the GPU rounds: one unit in the last place is allowed.
"""

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from pyflow import core, noise
from pyflow.core import IMAGE, LINEAR, NOISE, VELOCITY, VP_COSINE, Row
from pyflow.errors import InvalidInput

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pyflow import kernels  # noqa: E402

OPERANDS = ("x", "cond", "uncond", "previous", "noise", "mask", "image", "noise0")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 7, 1023, 1025, 70_001)  # around a warp, around a program, and several programs with a tail

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def tensors(rng, size: int, dtype, device) -> dict:
    """Random operands in x's dtype; the mask in 0..1, both ends included."""
    made = {name: rng.standard_normal(size) for name in OPERANDS}
    made["mask"] = rng.choice([0.0, 1.0, 0.25, rng.random()], size)
    return {name: torch.from_numpy(values).to(device, dtype) for name, values in made.items()}


def row_with(rng, coefficients: str) -> Row:
    """A row whose other coefficients are zero. `coefficients` is a string of names, a space between two."""
    named = {name: float(rng.uniform(0.1, 2)) * rng.choice([-1, 1]) for name in coefficients.split()}
    return Row(**dict.fromkeys(Row._fields, 0.0) | named)


def read_by(row: Row, guided: bool, masked: bool) -> set[str]:
    """The operands that this row has a use for."""
    weighted = {"x": row.a, "cond": row.b, "uncond": row.b * guided, "previous": row.h, "noise": row.n}
    if masked:
        weighted |= {"mask": 1.0, "image": row.ka, "noise0": row.ks}
    return {name for name, coefficient in weighted.items() if coefficient != 0.0}


def expected(row: Row, guidance: float, operands: dict) -> tuple:
    """The reference in float32 on the CPU, rounded once at the end."""
    wide = {name: operand.cpu().float() for name, operand in operands.items()}
    dtype = operands["x"].dtype
    return tuple(result.to(dtype) for result in core.fused_step(row, guidance=guidance, **wide))


def assert_equal(actual, wanted):
    """Equal to the bit, but for the last bit of bfloat16 in the interpreter. NaN is equal to nothing."""
    actual = actual.cpu()
    assert torch.isfinite(wanted).all()
    assert torch.isfinite(actual).all(), f"{(~actual.isfinite()).sum()} of {actual.numel()} elements are not finite"
    allowed = 1 if actual.dtype == torch.bfloat16 and "TRITON_INTERPRET" in os.environ else 0
    assert (in_order(actual) - in_order(wanted)).abs().max() <= allowed


def in_order(values):
    """Integers that neighbouring floats number one by one."""
    bits = values.view({2: torch.int16, 4: torch.int32}[values.itemsize])
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits.long(), bits.long())


def assert_step_matches(row: Row, guidance: float, operands: dict):
    """Run a row into buffers full of NaN with a margin on either side, which has to stay NaN."""
    x = operands["x"]
    out, guided = torch.full((2, x.numel() + 2), torch.nan, dtype=x.dtype, device=x.device)
    given = {"out": out[1:-1], "guided": guided[1:-1]}
    y, p = kernels.fused_step(row, guidance=guidance, **operands, **given)
    wanted_y, wanted_p = expected(row, guidance, operands)
    assert y is given["out"]
    assert p is given["guided"] if "uncond" in operands else p is operands["cond"]
    assert_equal(y, wanted_y)
    assert_equal(p, wanted_p)
    assert out[[0, -1]].isnan().all()
    assert guided[[0, -1]].isnan().all()


# ---- parity
@every_dtype
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coefficients", ["a b", "a b h n ka ks"])
def test_sizes(rng, kernel_device, dtype, size, coefficients):
    operands = tensors(rng, size, dtype, kernel_device)
    if coefficients == "a b":
        operands = {name: operands[name] for name in ("x", "cond")}
    assert_step_matches(row_with(rng, coefficients), 3.5, operands)


@every_dtype
@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.parametrize("kept", ["", "ka", "ks", "ka ks"], ids=["unmasked", "image", "noise0", "image+noise0"])
def test_every_variant_reads_only_what_its_row_names(rng, kernel_device, dtype, guided, kept):
    """Every choice of a, b, h and n. What the row has no use for is full of NaN, or absent."""
    for chosen in itertools.product((False, True), repeat=4):
        if not any(chosen):
            continue
        row = row_with(rng, " ".join([*itertools.compress("abhn", chosen), kept]))
        operands = tensors(rng, 260, dtype, kernel_device)
        if not guided:
            del operands["uncond"]
        if not kept:
            del operands["mask"]
        read = read_by(row, guided, bool(kept))
        poisoned = {name: t if name in read else torch.full_like(t, torch.nan) for name, t in operands.items()}
        present = {name: t for name, t in poisoned.items() if name in {*read, "x", "cond"}}
        wanted, _ = expected(row, -0.7, operands)
        for given in (poisoned, present):
            out = torch.full_like(operands["x"], torch.nan)
            assert_equal(kernels.fused_step(row, guidance=-0.7, out=out, **given)[0], wanted)


def test_shape_and_dtype_are_those_of_x(rng, kernel_device):
    operands = tensors(rng, 24, torch.float16, kernel_device)
    x, cond = operands["x"].reshape(2, 3, 4), operands["cond"].reshape(2, 3, 4)
    y, p = kernels.fused_step(row_with(rng, "a b"), x=x, cond=cond)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert p is cond


def test_guided_prediction_is_written_only_where_asked(rng, kernel_device):
    operands = tensors(rng, 100, torch.float32, kernel_device)
    assert kernels.fused_step(row_with(rng, "a b ka ks"), guidance=2.0, **operands)[1] is None
    # it is computed for the next row even where this one has no use for it
    row, kept = row_with(rng, "a"), torch.full_like(operands["x"], torch.nan)
    del operands["mask"]
    y, p = kernels.fused_step(row, guidance=2.0, **operands, guided=kept)
    assert_equal(y, expected(row, 2.0, operands)[0])
    assert_equal(p, expected(row, 2.0, operands)[1])


@pytest.mark.parametrize("reused", ["uncond", "previous"])
def test_buffers_may_be_reused_in_place(rng, kernel_device, reused):
    row, operands = row_with(rng, "a b h n ka ks"), tensors(rng, 40_000, torch.float32, kernel_device)
    wanted = expected(row, 4.0, operands)
    y, p = kernels.fused_step(row, guidance=4.0, **operands, out=operands["x"], guided=operands[reused])
    assert y is operands["x"]
    assert p is operands[reused]
    assert_equal(y, wanted[0])
    assert_equal(p, wanted[1])


def test_integers_do_for_coefficients_and_guidance(rng, kernel_device):
    row, operands = Row(0, 1, 1, 2, 0, 1, 0, 1), tensors(rng, 100, torch.float32, kernel_device)
    assert_equal(kernels.fused_step(row, guidance=1, **operands)[0], expected(row, 1, operands)[0])


def test_nan_in_an_operand_that_is_read_is_not_hidden(rng, kernel_device):
    row, operands = row_with(rng, "a b h n ka ks"), tensors(rng, 64, torch.float32, kernel_device)
    for name in OPERANDS:
        poisoned = operands | {name: operands[name].clone()}
        poisoned[name][17] = torch.nan
        y, _ = kernels.fused_step(row, guidance=2.0, **poisoned)
        assert y.isnan().nonzero().flatten().tolist() == [17]


# ---- whole plans: the reference loop with the Triton step in place of its own
PLANS = {
    "euler": core.euler(LINEAR, VELOCITY, core.cosine_grid(5)),
    "heun": core.heun(LINEAR, VELOCITY, core.uniform_grid(3)),
    "ab2": core.ab2(LINEAR, VELOCITY, core.uniform_grid(5)),
    "ddim": core.ddim(VP_COSINE, IMAGE, core.uniform_grid(4)),
    "ddpm": core.ddpm(VP_COSINE, NOISE, core.cosine_grid(5)),
    "renoise": core.renoise(LINEAR, VELOCITY, core.uniform_grid(4)),
}


def toy_network(x, s: float, t: float, labelled: bool):
    """On the CPU always: the plan is compared, not the GPU's tanh."""
    return (torch.tanh(x.cpu() * (1.5 - s)) + 0.25 * t * labelled).to(x.device)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_plans(rng, kernel_device, monkeypatch, plan, guidance, masked):
    seed, first, pictures, size = int(rng.integers(2**32)), int(rng.integers(2**31)), 3, 75
    known = {}
    if masked:
        known["image"] = torch.from_numpy(rng.standard_normal((pictures, size), np.float32))
        known["mask"] = torch.from_numpy(rng.integers(0, 2, (pictures, size)).astype(np.float32))

    def reference_noise(row):
        return torch.from_numpy(noise.normal(seed, first, pictures, size, row))

    def triton_noise(row):
        return kernels.normal(seed, first, pictures, size, row, device=kernel_device)

    def triton_step(row, **operands):
        return kernels.fused_step(row, **operands, guided=torch.empty_like(operands["x"]))

    wanted = core.sample(toy_network, plan, reference_noise, guidance=guidance, **known)
    monkeypatch.setattr(core, "fused_step", triton_step)
    known = {name: t.to(kernel_device) for name, t in known.items()}
    actual = core.sample(toy_network, plan, triton_noise, guidance=guidance, **known)
    # the steps are equal to the bit, the normals on a GPU within 2 ulp, which a plan of five rows may amplify
    torch.testing.assert_close(actual.cpu(), wanted, rtol=0, atol=0 if kernel_device == "cpu" else 1e-4)


# ---- what is refused
WRONG = {
    "not contiguous": (lambda t: torch.stack([t, t], dim=1)[:, 0], r"not contiguous \(strides \(2,\)\)"),
    "dtype": (lambda t: t.double(), r"torch\.float64 \(12,\)"),
    "shape": (lambda t: t.reshape(3, 4), r"torch\.float32 \(3, 4\)"),
    "device": (lambda t: t.to("meta"), r"torch\.float32 \(12,\) on meta"),
}


@pytest.mark.parametrize("name", [*OPERANDS[1:], "out", "guided"])
@pytest.mark.parametrize(("spoil", "came"), WRONG.values(), ids=WRONG.keys())
def test_an_operand_that_does_not_lie_as_x_does_is_refused(rng, kernel_device, name, spoil, came):
    operands = tensors(rng, 12, torch.float32, kernel_device)
    operands |= {"out": torch.empty_like(operands["x"]), "guided": torch.empty_like(operands["x"])}
    operands[name] = spoil(operands[name])
    with pytest.raises(InvalidInput, match=rf"^{name} is .*{came}"):
        kernels.fused_step(row_with(rng, "a b"), **operands)


@pytest.mark.parametrize("spoil", ["not contiguous", "dtype"])
def test_an_x_that_the_kernel_cannot_take_is_refused(rng, kernel_device, spoil):
    operands = tensors(rng, 12, torch.float32, kernel_device)
    with pytest.raises(InvalidInput, match=r"^x is .* expected contiguous float32, float16 or bfloat16"):
        kernels.fused_step(row_with(rng, "a"), x=WRONG[spoil][0](operands["x"]), cond=operands["cond"])


@pytest.mark.parametrize(
    ("name", "coefficients"), [("previous", "a h"), ("noise", "a n"), ("image", "a ka"), ("noise0", "a ks")]
)
def test_an_operand_that_the_row_needs_is_asked_for(rng, kernel_device, name, coefficients):
    operands = tensors(rng, 12, torch.float32, kernel_device)
    del operands[name]
    with pytest.raises(InvalidInput, match=rf"^{name} is missing"):
        kernels.fused_step(row_with(rng, coefficients), **operands)


# ---- in a Python where the interpreter was not asked for
def in_compiled_python(*arguments: str, cache) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    finished = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_kernels_say_so(tmp_path):
    program = """
import torch
from pyflow import core, errors, kernels
x = torch.zeros(4)
for call in (
    lambda: kernels.fused_step(core.Row(0, 1, 1, 1, 0, 0, 0, 0), x=x, cond=x),
    lambda: kernels.normal(0, 0, 1, 4, 0, device="cuda"),
):
    try:
        call()
    except errors.BackendUnavailable as refusal:
        print(refusal)
"""
    sentences = in_compiled_python("-c", program, cache=tmp_path).splitlines()
    assert len(sentences) == 2
    assert all("need an NVIDIA GPU" in sentence for sentence in sentences)


def test_every_variant_compiles_for_hopper(tmp_path):
    """Without a GPU. PTX tells that an operand without a coefficient is not read, and how wide the others are read."""
    from pyflow.kernels.compile import STEPS

    header, *lines = in_compiled_python("-m", "pyflow.kernels.compile", cache=tmp_path).splitlines()
    table = [dict(zip(header.split(), re.split(r"\s{2,}", line))) for line in lines]
    steps = [row for row in table if row["kernel"] == "step_kernel"]
    assert len(steps) == 3 * len(STEPS)
    for row in steps:
        given = set(STEPS[row["variant"]][0].split())
        accesses = 2 if row["dtype"] == "fp32" else 1  # 8 elements a thread, 16 bytes an access
        assert int(row["loads"]) == int(row["wide_loads"]) == accesses * len(given - {"guided"}), row
        assert int(row["stores"]) == int(row["wide_stores"]) == accesses * (1 + ("guided" in given)), row
        assert int(row["contractions"]) == 0, row
    normals = [row for row in table if row["kernel"] == "normal_kernel"]
    assert len(normals) == 3
    assert all(row["loads"] == "0" and row["stores"] == row["wide_stores"] != "0" for row in normals)
    assert all(int(row["cubin_bytes"]) > 0 and 0 < int(row["registers"]) <= 128 for row in table)
