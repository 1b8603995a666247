"""The benchmark over all backends, at a size that a test can afford: it refuses before it times, and tells all."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pyflow.pictures import Output
from pyflow.spec import MLP

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "backends.py"


@pytest.fixture
def backends(monkeypatch):
    spec = importlib.util.spec_from_file_location("backends", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "backends", module)
    spec.loader.exec_module(module)
    return module


def test_what_is_wrong_is_not_timed(backends, rng):
    truth = rng.standard_normal((2, 1, 8, 8), dtype=np.float32) / 3
    subject = backends.Subject(None, "fp32", Path("here"), None, 0, 0.0)
    nothing = np.zeros(1)
    for factor, passes in ((1.0, True), (1.0 + 1e-6, True), (1.001, False), (float("nan"), False)):
        call = lambda factor=factor: Output(truth * np.float32(factor), nothing, nothing)  # noqa: E731
        if passes:
            assert backends.parity(subject, truth, call)["relative"] < 1e-5
        else:
            with pytest.raises(AssertionError, match="nothing was timed"):
                backends.parity(subject, truth, call)


@pytest.mark.slow
def test_the_rehearsal(backends, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "VARIANTS", backends.VARIANTS[:3])
    monkeypatch.setattr(backends, "STEPS", (1, 2, 10))
    monkeypatch.setattr(backends, "TINY", MLP(shape=(2,), width=16, depth=2, classes=3))  # quick to compile
    monkeypatch.setattr(sys, "argv", ["backends.py", "--tiny", "--out", str(tmp_path)])
    backends.main()
    record = json.loads((tmp_path / "backends-cpu.json").read_text())
    assert {row["variant"] for row in record["latency"]} == set(record["cold_start"]) == set(record["artefacts"])
    assert all(row["relative"] <= 1e-5 and row["median_ms"] > 0 for row in record["latency"])
    assert {"commit", "date", "processor", "command"} <= set(record["facts"])
    assert (tmp_path / "backends-cpu.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for name in record["cold_start"]:
        assert printed.count(name) == 3, "twice a batch, once the cold start"
