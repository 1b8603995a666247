"""The scripts of benchmarks/gpu, rehearsed at the smallest sizes on the CPU, before they cost a GPU's minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("onnxscript")

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the scripts themselves run on it")


def python(*arguments: str) -> subprocess.CompletedProcess:
    """In a Python of its own; what torch.compile is given runs as it is, for no compiler is that fast."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPTS),
    }
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def rehearsed(script: str, folder: Path, *arguments: str) -> dict:
    done = python(str(SCRIPTS / script), "--out", str(folder), "--tiny", "--device", "cpu", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / script).with_suffix(".json").read_text())


def assert_every_time_has_its_parity(rows: list[dict]):
    for row in rows:
        assert 0 < row["median_ms"] <= row["p99_ms"], row
        assert row["psnr"] >= 40 or row["relative"] <= 1e-5, row


def test_parity(tmp_path):
    kept = rehearsed("parity.py", tmp_path)
    assert all(row["holds"] for row in kept["rows"])
    assert {row["check"] for row in kept["rows"]} == {"philox", "normal", "fused step", "loop", "pytest -m gpu"}
    assert {"commit", "triton", "processor", "seed"} <= set(kept["facts"])


def test_latency(tmp_path):
    kept = rehearsed("latency.py", tmp_path)
    assert_every_time_has_its_parity(kept["rows"])
    variants = {row["variant"] for row in kept["rows"]}
    assert {"torch eager", "torch.compile", "CUDA graph", "CUDA graph, compiled"} <= variants
    assert len(kept["rows"]) == len(variants) * 4  # two batches, two plans
    assert {row["way"] for row in kept["kernels"]} == {"eager", "compiled", "kernel"}
    assert (tmp_path / "latency.png").stat().st_size > 1000


def test_engines(tmp_path):
    kept = rehearsed("engines.py", tmp_path)
    assert_every_time_has_its_parity(kept["rows"])
    assert {row["variant"] for row in kept["rows"]} == {"torch eager", "CUDA graph", "onnx fp32"}
    assert [("tensorrt" in line["left out"], bool(line["why"])) for line in kept["left_out"]] == [(True, True)]


def test_a_budget_that_is_used_up_leaves_out_and_says_so(tmp_path):
    kept = rehearsed("latency.py", tmp_path, "--budget", "0")
    assert kept["rows"] == []
    assert kept["left_out"]
    assert all("the budget is used" in line["why"] for line in kept["left_out"])


def test_without_a_gpu_the_rehearsal_is_named(tmp_path):
    done = python(str(SCRIPTS / "parity.py"), "--out", str(tmp_path))
    assert done.returncode == 2
    assert "torch sees no NVIDIA GPU; rehearse with --tiny --device cpu" in done.stderr


def test_what_differs_is_not_timed():
    program = """
import bench, torch
from pyflow.engines.manifest import BOUNDS
from pyflow.models import random_network
from pyflow.spec import Spec
spec, model = Spec(bench.TINY), random_network(bench.TINY)
wrong = lambda *given: 1.1 * model(*given)
contenders = {
    name: bench.Contender(bench.PlainLoop(network, spec, "cpu", torch.float32), BOUNDS["fp32"], 0.0)
    for name, network in {"right": model, "wrong": wrong}.items()
}
truths, case = bench.Truths(model, spec), bench.case_of(spec, 2, 3)
rows, failed = bench.proved_and_timed(contenders, truths, case, rounds=1, seconds=1)
assert [row["variant"] for row in rows] == ["right"], rows
assert "wrong" in failed[0]["left out"] and "ParityError" in failed[0]["why"], failed
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
