"""The C++ step and picture conversion: the same bits as NumPy on every instruction set, and refusals that tell why."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from pyflow import core, native
from pyflow.core import Row
from pyflow.errors import InvalidInput

ISAS = native.supported_isas()
SIZES = (1, 3, 31, 1023, 1025, 100_003)  # around the tile of 1024 and every vector width
OPERANDS = ("x", "cond", "uncond", "previous", "noise", "mask", "image", "noise0")


@pytest.fixture
def rng():
    entropy = np.random.SeedSequence().entropy
    print(f"np.random.default_rng({entropy})")  # pytest shows it when the test fails
    return np.random.default_rng(entropy)


def draw(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    arrays = {name: rng.standard_normal(size).astype(np.float32) for name in OPERANDS}
    arrays["mask"] = np.clip(rng.uniform(-0.5, 1.5, size), 0, 1).astype(np.float32)  # many exact zeros and ones
    return arrays


def in_cpp(row, arrays, guidance, isa, out, guided):
    operands = {name: arrays.get(name) for name in OPERANDS}
    native._C.fused_step(row=row, guidance=guidance, out=out, guided=guided, isa=isa, **operands)


def assert_same_bits(got: np.ndarray, expected: np.ndarray, what: object) -> None:
    assert expected.dtype == np.float32
    assert not np.isnan(got).any(), what
    different = np.flatnonzero(got.view(np.uint32) != expected.view(np.uint32))
    assert different.size == 0, f"{what}: {different.size} of {got.size} differ, first at {different[0]}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_set_of_terms_gives_numpys_bits(isa, size, rng):
    drawn = draw(rng, size)
    nothing = np.full(size, np.nan, np.float32)
    for on in itertools.product((0.0, 1.0), repeat=6):
        a, b, h, n, ka, ks = (float(c) * switch for c, switch in zip(rng.uniform(-2, 2, 6), on))
        row = Row(0.25, 0.5, a, b, h, n, ka, ks)
        if not any((a, b, h, n)):
            continue
        for guided in (False, True):
            arrays = {name: drawn[name] for name in ("x", "cond", "previous", "noise")}
            if guided:
                arrays["uncond"] = drawn["uncond"]
            if any((ka, ks)):
                arrays |= {name: drawn[name] for name in ("mask", "image", "noise0")}
            unread = {"x": a, "previous": h, "noise": n, "image": ka, "noise0": ks}
            arrays |= {name: nothing for name, c in unread.items() if name in arrays and c == 0.0}
            if b == 0.0:
                arrays["cond"] = drawn["cond"]  # p is handed on even when the state does not use it
            guidance = float(rng.uniform(-1, 8))
            expected, expected_p = core.fused_step(row, guidance=guidance, **arrays)
            out, p = np.full(size, np.nan, np.float32), np.full(size, np.nan, np.float32)
            in_cpp(row, arrays, guidance, isa, out, p)
            what = (isa, size, row, guidance, sorted(arrays))
            assert_same_bits(out, expected, what)
            assert_same_bits(p, expected_p, what)


@pytest.mark.parametrize("isa", ISAS)
def test_state_and_memory_may_be_updated_in_place(isa, rng):
    row, arrays = Row(0.0, 0.5, 0.9, 0.1, -0.2, 0.3, 0.4, 0.6), draw(rng, 5000)
    expected, expected_p = core.fused_step(row, guidance=2.5, **arrays)
    in_cpp(row, arrays, 2.5, isa, out=arrays["x"], guided=arrays["previous"])
    assert_same_bits(arrays["x"], expected, isa)
    assert_same_bits(arrays["previous"], expected_p, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_a_coefficient_that_only_rounds_to_zero_is_still_a_term(isa, rng):
    row, x = Row(0.0, 1.0, 1e-60, 1.0, 0.0, 0.0, 1.0, 0.0), rng.standard_normal(7).astype(np.float32)
    cond = np.full(7, -0.0, np.float32)  # -0 + 0*x is +0 or -0: the sign tells whether the term was added
    assert_same_bits(native.fused_step(row, x=x, cond=cond, isa=isa)[0], core.fused_step(row, x=x, cond=cond)[0], isa)


def test_the_front_returns_what_core_returns(rng):
    shape = (3, 2, 5, 7)
    arrays = {name: array.reshape(shape) for name, array in draw(rng, 210).items()}
    arrays["mask"] = arrays["mask"][:, :1]  # one mask for all channels
    arrays["x"] = np.asfortranarray(arrays["x"])
    row = Row(0.0, 0.5, 0.9, 0.1, -0.2, 0.3, 0.4, 0.6)
    for got, expected in zip(
        native.fused_step(row, guidance=1.5, **arrays), core.fused_step(row, guidance=1.5, **arrays)
    ):
        assert_same_bits(got, np.ascontiguousarray(expected), shape)
    cond = arrays["cond"]
    assert native.fused_step(Row(0, 1, 1, 1, 0, 0, 1, 0), x=arrays["x"], cond=cond)[1] is cond


X = np.zeros((2, 3), np.float32)
GOOD = Row(0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (GOOD, {"x": X.astype(np.float64)}, "x is dtype float64; expected a NumPy array of float32"),
        (GOOD, {"x": [0.0]}, "x is a list"),
        (GOOD, {"cond": X[:1]}, r"cond has shape \(1, 3\); expected \(2, 3\)"),
        (GOOD, {"uncond": X.T}, r"uncond has shape \(3, 2\)"),
        (GOOD, {"mask": X[:, :2], "image": X, "noise0": X}, r"mask has shape .* broadcasts to \(2, 3\)"),
        (GOOD, {"mask": X, "noise0": X}, "ka=0.5 and image is None"),
        (GOOD, {"mask": X, "image": X}, "ks=0.5 and noise0 is None"),
        (GOOD._replace(h=0.5), {}, "h=0.5 and previous is None"),
        (GOOD._replace(n=0.5), {}, "n=0.5 and noise is None"),
        (GOOD._replace(a=float("nan")), {}, "a of row 1 is nan"),
        (GOOD._replace(b=1e300), {}, r"b of row 1 is 1e\+300; expected a number that is finite in float32"),
        (GOOD._replace(a=0.0, b=0.0), {}, "a=b=h=n=0"),
        (GOOD._replace(ka=0.0, ks=0.0), {"mask": X}, "ka=ks=0"),
        ((1.0, 2.0), {}, "the plan has shape"),
        (GOOD, {"guidance": float("inf")}, "guidance is inf"),
        (GOOD, {"isa": "sse9"}, "isa is 'sse9'; expected one of scalar, avx2, avx512"),
    ],
)
def test_what_cannot_be_stepped_is_refused(row, change, message):
    with pytest.raises(InvalidInput, match=message):
        native.fused_step(row, **{"x": X, "cond": X, **change})


# ---- the choice of the instruction set
def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_forces_an_instruction_set(isa):
    assert run_python("from pyflow import native; print(native.isa())", PYFLOW_ISA=isa).stdout.strip() == isa


def test_an_unknown_instruction_set_is_an_error_of_the_first_use():
    run = run_python("from pyflow import native; print('imported'); native.isa()", PYFLOW_ISA="sse9")
    assert run.stdout.strip() == "imported"
    assert "InvalidInput: PYFLOW_ISA is 'sse9'; expected one of scalar, avx2, avx512" in run.stderr
    assert f"runs {', '.join(ISAS)}" in run.stderr


@pytest.mark.skipif("avx512" in ISAS, reason="this CPU runs every instruction set")
def test_an_instruction_set_that_this_cpu_lacks_is_refused():
    run = run_python("from pyflow import native; native.isa()", PYFLOW_ISA="avx512")
    assert "BackendUnavailable: PYFLOW_ISA is 'avx512'; this build on this CPU runs" in run.stderr


def test_the_import_is_quick_and_pulls_in_no_framework():
    code = (
        "import sys, time; begin = time.perf_counter(); import pyflow.native; print(time.perf_counter() - begin);"
        "assert not {'torch', 'onnxruntime', 'onnx'} & set(sys.modules)"
    )
    runs = [run_python(code) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert min(float(run.stdout) for run in runs) < 0.3


# ---- to_uint8
def test_pictures_become_bytes_as_the_formula_says(rng):
    pictures = rng.uniform(-1.3, 1.3, (5, 3, 7, 9)).astype(np.float32)
    pictures.flat[:4] = 1e36, -1e36, 1, -1
    pictures[1].flat[:] = (np.arange(189) / 2 - 60) / 127.5  # halves, to be rounded up
    level = np.clip(pictures * np.float32(127.5) + np.float32(127.5), 0, 255)
    expected = np.floor(level + np.float32(0.5)).astype(np.uint8).transpose(0, 2, 3, 1)
    got = native.to_uint8(pictures)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_picture_that_is_not_finite_is_named(bad):
    pictures = np.zeros((4, 3, 2, 2), np.float32)
    pictures[2, 1, 0, 1] = bad
    with pytest.raises(InvalidInput, match="picture 2 holds a NaN or an infinity"):
        native.to_uint8(pictures)


@pytest.mark.parametrize("bad", [np.zeros((3, 2, 2), np.float32), np.zeros((1, 3, 2, 2))])
def test_only_float32_nchw_becomes_bytes(bad):
    with pytest.raises(InvalidInput, match="pictures"):
        native.to_uint8(bad)
