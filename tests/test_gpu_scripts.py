"""The scripts of benchmarks/gpu, rehearsed at the smallest sizes on the CPU, before they cost a GPU's minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyflow

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


@pytest.mark.slow
def test_training_in_pieces(tmp_path):
    """Stopped somewhere, called again: every run is there, judged, and the small ones are checkpoints with a card."""
    folders = ["--data", "digits", "--runs", str(tmp_path / "runs")]
    assert rehearsed("train.py", tmp_path, *folders, "--budget", "3")["done"] is False
    kept = rehearsed("train.py", tmp_path, *folders, "--budget", "500")
    assert kept["done"]
    names = ["teacher", "small-teacher", "reflow", "lines", "meanflow", "lsd"]
    assert [row["model"] for row in kept["rows"]] == [name for name in names for _ in range(2)]
    for name in names:
        assert kept["plan"][name]["images_per_second"] > 0
        assert kept["plan"][name]["steps"] == kept["losses"][name][-1][0]
        assert (tmp_path / f"train-{name}.png").stat().st_size > 1000
    for name in names[1:]:
        here = tmp_path / "models" / name
        weights = (here / "weights.safetensors").stat().st_size
        assert weights < 0.6 * (tmp_path / "runs" / name / "weights.safetensors").stat().st_size
        told = here.with_suffix(".md").read_text()
        assert told.startswith(f"# {name}\n")
        assert f"`{name.replace('small-teacher', 'cfm')}`" in told
        rows = [row for row in kept["rows"] if row["model"] == name]
        assert all(f"| {row['steps']} | {row['guidance']:g} | {row['distance']:.3f} |" in told for row in rows)
        flow = pyflow.load(here)
        assert {row["identity"] for row in rows} == {flow.identity}, "other weights were judged than are kept"
        assert flow.sample(2, steps=1, label=[0, 1]).states.shape == (2, 1, 16, 16)
        assert here.with_suffix(".png").exists()


def test_a_plan_of_another_setting_is_refused(tmp_path):
    arguments = ["--out", str(tmp_path), "--tiny", "--device", "cpu", "--data", "digits", "--budget", "0"]
    runs = ["--runs", str(tmp_path / "runs")]
    assert python(str(SCRIPTS / "train.py"), *arguments, *runs).returncode == 0
    done = python(str(SCRIPTS / "train.py"), *arguments, *runs, "--total", "5")
    assert "holds a plan of" in done.stderr
    assert "'total': 25.0" in done.stderr


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
