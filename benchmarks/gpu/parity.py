"""Parity on a GPU, before anything is timed on it: the Triton kernels, the loop around a network, the GPU tests.

python benchmarks/gpu/parity.py --out DIR [--budget 180] [--tiny --device cpu]

Every check is made and told, whatever became of those before; then the script fails if one did not hold.
"""

import argparse
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch
from pyflow.training.recipes import UNET_1M
from torch import Tensor

from pyflow import core, noise
from pyflow.certificate import Expected, cases, fresh_seed, measure
from pyflow.engines.manifest import BOUNDS, Bound
from pyflow.models import random_network
from pyflow.spec import Spec

ROOT = Path(__file__).resolve().parents[2]
ANY = Bound(psnr=0.0)  # what was found is told, and judged here
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COLUMNS = ("check", "case", "found", "allowed", "unit", "holds")


def row(check: str, case: str, found: float, allowed: float, unit: str, holds: bool | None = None) -> dict[str, Any]:
    """A figure that may be `allowed` at most, unless `holds` says it differently."""
    told = {"check": check, "case": case, "found": float(found), "allowed": allowed, "unit": unit}
    return {**told, "holds": bool(found <= allowed if holds is None else holds)}


def ulps(actual: Tensor, wanted: Tensor) -> int:
    """How many floats of their dtype lie between the two, at the worst element; a NaN is far from everything."""
    if not torch.isfinite(actual).all():
        return 2**31
    kind = {2: torch.int16, 4: torch.int32}[actual.itemsize]
    ordered = []
    for values in (actual.cpu(), wanted.cpu()):
        bits = values.view(kind)
        ordered.append(torch.where(bits < 0, torch.iinfo(kind).min - bits.long(), bits.long()))
    return int((ordered[0] - ordered[1]).abs().max())


def drawn(rng: np.random.Generator, device: str, count: int) -> Iterator[dict[str, Any]]:
    """Philox: the integers of the CPU, and its normals within 2 units in the last place."""
    from pyflow import kernels

    counter, key = (rng.integers(0, 2**32, (count, width), np.uint32) for width in (4, 2))
    came = kernels.words(torch.from_numpy(counter).to(device), torch.from_numpy(key).to(device)).cpu().numpy()
    yield row("philox", f"{count} counters", (came != noise.philox(counter, key)).sum(), 0, "integers that differ")
    for seed, first in ((0, 0), (2**32 - 1, 2**32 - 4), (int(rng.integers(2**32)), int(rng.integers(2**31)))):
        normals = kernels.normal(seed, first, 3, count, 1, device=device)
        wanted = torch.from_numpy(noise.normal(seed, first, 3, count, 1))
        yield row("normal", f"seed {seed}, first {first}", ulps(normals, wanted), 2, "ulp")


def stepped(rng: np.random.Generator, device: str, size: int) -> Iterator[dict[str, Any]]:
    """The fused step in every dtype against the reference in float32, rounded once."""
    from pyflow.kernels.machine import INTERPRETED

    from pyflow import kernels

    whole = core.Row(0.0, 1.0, *rng.uniform(0.1, 2, 6).tolist())
    for (name, dtype), guided, masked in itertools.product(DTYPES.items(), (False, True), (False, True)):
        names = ["x", "cond", "previous", "noise", *["uncond"] * guided, *["mask", "image", "noise0"] * masked]
        operands = {each: torch.from_numpy(rng.standard_normal(size)).to(device, dtype) for each in names}
        if masked:
            operands["mask"] = (operands["mask"] > 0).to(dtype)
        wide = {each: operand.cpu().float() for each, operand in operands.items()}
        wanted = core.fused_step(whole, guidance=2.5, **wide)[0].to(dtype)
        came = kernels.fused_step(whole, guidance=2.5, **operands)[0]
        allowed = int(dtype == torch.bfloat16 and INTERPRETED)  # which truncates where a GPU rounds
        yield row("fused step", f"{name}{', guided' * guided}{', masked' * masked}", ulps(came, wanted), allowed, "ulp")


def looped(device: str, tiny: bool) -> Iterator[dict[str, Any]]:
    """Whole plans as an engine's certificate has them, recorded and row by row, in both precisions."""
    from pyflow.engines.cuda import CudaRunner

    spec = Spec(bench.TINY if tiny else UNET_1M, null_label=True)
    model, made = random_network(spec.network), cases(spec)
    made = [case for case in made if case.batch == 3 and case.steps <= 2] if tiny else made
    expected = Expected(spec, made, fresh_seed()).compute(model)
    for (precision, dtype), graph in itertools.product({"fp32": torch.float32, "bf16": torch.bfloat16}.items(), (0, 1)):
        bound = BOUNDS[precision]
        found = measure(CudaRunner(model, spec, device, dtype, graph=bool(graph)), spec, made, expected, ANY)
        case = f"{precision}, {'recorded' if graph else 'row by row'}, {len(made)} cases, seed {expected.seed}"
        if bound.relative is not None:
            yield row("loop", case, found.worst, bound.relative, "relative error")
        if bound.psnr is not None:
            yield row("loop", case, found.psnr, bound.psnr, "dB at least", found.psnr >= bound.psnr)


def tested(tiny: bool, seconds: float) -> dict[str, Any]:
    """The suite's own GPU tests; a rehearsal takes one that says it was skipped."""
    chosen = ["tests/test_triton_noise.py", "-k", "known_answers"] if tiny else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *chosen]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=max(10, seconds))
    except subprocess.TimeoutExpired:
        return row("pytest -m gpu", f"did not end within {seconds:.0f} s", 1, 0, "runs that failed")
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(failed))
    summary = re.sub(r"\s+in [\d.]+s.*", "", lines[-1].strip("= ")) if lines else done.stderr[-200:]
    return row("pytest -m gpu", summary, max(len(failed), int(done.returncode != 0)), 0, "tests that failed")


def run(given: argparse.Namespace) -> bool:
    seed = fresh_seed()
    rng, budget = np.random.default_rng(seed), bench.Budget(given.budget)
    count = 5000 if given.tiny else 1_000_000
    checks = {
        "noise": drawn(rng, given.device, count),
        "fused step": stepped(rng, given.device, count + 1),
        "loop": looped(given.device, given.tiny),
    }
    rows = []
    for name, check in checks.items():
        try:
            for checked in check:
                rows.append(checked)
                print(*(f"{checked[column]}" for column in COLUMNS), sep=" | ", flush=True)
        except Exception as error:
            rows.append(row(name, f"{type(error).__name__}: {error}", 1, 0, "errors"))
    rows.append(tested(given.tiny, budget.left))
    facts = {"command": "benchmarks/gpu/parity.py", "seed": seed, **bench.facts(given.device)}
    bench.keep(given.out, "parity", {"facts": facts, "rows": rows})
    bench.show(rows, COLUMNS)
    return all(checked["holds"] for checked in rows)


if __name__ == "__main__":
    sys.exit(0 if run(bench.parsed(bench.arguments(__doc__, budget=180))) else 1)
