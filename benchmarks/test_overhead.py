"""What the loop itself costs a row, and a call around its rows, where the network is small."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pyflow.training.recipes import MLP_2D

from pyflow import checkpoint, core, export, load, native
from pyflow.models import random_network
from pyflow.spec import Spec

ROWS = 1000
PYTHON, CPP = "python loop", "c++ loop"
NATIVE, FLOW = "native.sample", "Flow.sample"
CEILINGS = {NATIVE: 8e-6, FLOW: 15e-6}  # seconds; 4.0 and 9.7 on an AMD EPYC, one thread, 2026-11-21
CALLS = 2000


def _python_overhead(plan: core.Plan, start: np.ndarray) -> float:
    inside = 0.0

    def denoise(x: np.ndarray, s: float, t: float, labelled: bool) -> np.ndarray:
        nonlocal inside
        before = time.perf_counter()
        p = -x
        inside += time.perf_counter() - before
        return p

    before = time.perf_counter()
    core.sample(denoise, plan, lambda row: start)
    return time.perf_counter() - before - inside


def _cpp_overhead(plan: core.Plan, start: np.ndarray) -> float:
    def denoise(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        np.negative(x, out=out)

    samples = native.sample(native.callable_denoiser(denoise, start.shape[1:]), plan, batch=1, noise0=start)
    return float(samples.row_seconds.sum() - samples.denoiser_seconds.sum())


def test_overhead_per_row(benchmark: Any, rows: list[dict[str, Any]]) -> None:
    plan = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(ROWS))
    start = np.random.default_rng().standard_normal((1, 2), dtype=np.float32)
    seconds: dict[str, list[float]] = {PYTHON: [], CPP: []}

    def run_both() -> None:
        seconds[PYTHON].append(_python_overhead(plan, start) / ROWS)
        seconds[CPP].append(_cpp_overhead(plan, start) / ROWS)

    benchmark.pedantic(run_both, rounds=25, warmup_rounds=1)
    ratio = statistics.median(slow / fast for slow, fast in zip(seconds[PYTHON], seconds[CPP]))
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    rows.append({"table": "Loop overhead a row", "case": "two numbers", "median_ms": medians, "ratio": {PYTHON: ratio}})
    assert ratio >= 10, f"the C++ loop is {ratio:.1f} times below the Python loop; the goal is 10"


def _around(call: Callable[[], Any]) -> float:
    """What a call takes beside its rows; the median, as others use the machine too."""
    seconds = []
    for _ in range(CALLS):
        before = time.perf_counter()
        made = call()
        seconds.append(time.perf_counter() - before - float(made.row_seconds.sum()))
    return statistics.median(seconds)


def test_overhead_per_call(benchmark: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Arguments, workspace, noise and arrays of one row of the network of the plane."""
    checkpoint.save(tmp_path / "mlp", random_network(MLP_2D), Spec(MLP_2D))
    export.export(tmp_path / "mlp", tmp_path / "engine", "native")
    flow = load(tmp_path / "engine", threads=1)
    calls = {NATIVE: partial(native.sample, flow.runner.denoiser, flow.plan(1), batch=1), FLOW: flow.sample}
    seconds: dict[str, list[float]] = {name: [] for name in calls}

    def run_both() -> None:
        for name, call in calls.items():
            seconds[name].append(_around(call))

    benchmark.pedantic(run_both, rounds=9, warmup_rounds=1)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    milliseconds = {name: 1e3 * value for name, value in medians.items()}
    rows.append({"table": "A call around its row", "case": "2D MLP, batch 1", "median_ms": milliseconds, "ratio": {}})
    for name, ceiling in CEILINGS.items():
        came, most = 1e6 * medians[name], 1e6 * ceiling
        assert medians[name] <= ceiling, f"{name} takes {came:.1f} us around its row; at most {most:g} are allowed"
