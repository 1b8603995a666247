"""Latency of 1, 2, 4 and 200 steps: a Python loop over torch eager or ONNX Runtime, and the C++ loop.

Every round runs all variants in turn; pytest-benchmark's own statistics are those of the C++ loop.
"""

import statistics
from typing import Any

import numpy as np
import pytest
from variants import CPP_ONNX, EAGER, PYTHON_ONNX, THREADS, Subject, cpp_onnx, eager, plan_of, python_onnx

from pyflow.timing import timed

STEPS, BATCHES = (1, 2, 4, 200), (1, 16)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["mlp-2d", "unet-1.4M"])
def test_latency(
    name: str, steps: int, batch: int, subjects: dict[str, Subject], benchmark: Any, rows: list[dict[str, Any]]
) -> None:
    subject = subjects[name]
    plan = plan_of(subject.spec, steps)
    variants = {
        EAGER: eager(subject.model, subject.spec, plan, batch),
        PYTHON_ONNX: python_onnx(subject.engine, subject.spec, plan, batch, THREADS),
        CPP_ONNX: cpp_onnx(subject.engine, subject.spec, plan, batch, THREADS),
    }
    truth = variants[EAGER]()
    for variant, call in variants.items():
        error = np.abs(call() - truth).max() / np.abs(truth).max()
        assert error <= 1e-5, f"{variant} differs from eager by {error:.1e}; nothing was timed"

    seconds: dict[str, list[float]] = {variant: [] for variant in variants}

    def run_peers() -> None:
        for peer in (EAGER, PYTHON_ONNX):
            seconds[peer].append(timed(variants[peer]))

    def run_fast() -> None:
        seconds[CPP_ONNX].append(timed(variants[CPP_ONNX]))

    rounds = 3 if name == "unet-1.4M" and steps == 200 else 25
    benchmark.pedantic(run_fast, setup=run_peers, rounds=rounds, warmup_rounds=1)
    ratio = {
        peer: statistics.median(slow / fast for slow, fast in zip(seconds[peer], seconds[CPP_ONNX]))
        for peer in (EAGER, PYTHON_ONNX)
    }
    rows.append(
        {
            "table": "Latency",
            "case": f"{name}, batch {batch}, {steps} steps",
            "median_ms": {variant: 1e3 * statistics.median(values) for variant, values in seconds.items()},
            "ratio": ratio,
        }
    )
