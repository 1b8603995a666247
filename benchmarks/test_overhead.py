"""What the loop itself costs a row: the whole run less the time inside the network, at a state of two numbers."""

import statistics
import time
from typing import Any

import numpy as np

from pyflow import core, native

ROWS = 1000
PYTHON, CPP = "python loop", "c++ loop"


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
