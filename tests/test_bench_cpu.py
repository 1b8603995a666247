"""The benchmark of the native engine, at a size that a test can afford: parity before times, and ratios of a class."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pyflow.spec import MLP

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
OURS = ("peers", "making", "floor", "contest", "tables", "cpu")


@pytest.fixture
def cpu(monkeypatch):
    """benchmarks/cpu.py with its neighbours, as the script finds them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("cpu")
    for name in OURS:
        sys.modules.pop(name, None)


def row(variant, precision, error, rounds):
    case = {"network": "n", "batch": 1, "steps": 1, "variant": variant, "precision": precision, "threads": 1}
    return {**case, "error": error, "rounds_ms": {"cpu_ms": rounds, "wall_ms": rounds}}


def bench_of(cpu, **changes):
    given = {"threads": 1, "batches": (1,), "steps": (1,), "few_steps": (1,), "rounds": 3, "budget": 1.0, "starts": 1}
    return cpu.Bench(**{**given, "peers": (), "cache": Path(), **changes})


def test_the_best_peer_is_the_fastest_of_the_class_that_is_right(cpu):
    ratios_of = sys.modules["contest"].ratios_of
    rows = [
        row("slow", "fp32", 1e-6, [8.0, 8.0, 80.0]),
        row("right", "fp32", 1e-6, [6.0, 60.0, 6.0]),
        row("wrong", "fp32", 1e-4, [1.0, 1.0, 1.0]),
        row("other class", "bf16", 1e-3, [2.0, 2.0, 2.0]),
        row("native fp32", "fp32", 1e-6, [2.0, 20.0, 2.0]),
    ]
    (found,) = ratios_of(bench_of(cpu), rows)
    assert (found["best_peer"], found["ratio"]) == ("right", 3.0), "of the rounds, the median of their ratios"
    assert found["over"] == {"slow": 4.0, "right": 3.0, "wrong": 0.5, "other class": 1.0}


def test_ours_beyond_the_error_of_its_class_is_not_timed(cpu, tmp_path, monkeypatch, capsys):
    contest, peers = sys.modules["contest"], sys.modules["peers"]
    subject = cpu.subject_of("points", MLP(shape=(2,), width=16, depth=2), tmp_path)
    truth = sys.modules["pyflow.engines.eager"].runner(subject.model, subject.spec).denoiser

    def scaled(factor):
        def predict(x, s, t, label, out):
            out[...] = np.float32(factor) * peers.forward(truth, subject.spec, len(x), core_row(s, t), x)

        return peers.native.callable_denoiser(predict, subject.spec.network.shape)

    core_row = lambda s, t: peers.core.Row(float(s[0]), float(t[0]), 0, 1, 0, 0, 1, 0)  # noqa: E731
    subject.opened = {("native fp32", 1): scaled(1 + 1e-4), ("peer fp32", 1): scaled(1 + 1e-4)}
    made = tuple(peers.Peer(name, "fp32", "file", None) for name in ("native fp32", "peer fp32"))
    monkeypatch.setattr(contest, "_loop_errors", lambda *given: {})
    monkeypatch.setattr(contest, "_loops", lambda *given: {})
    rows, ratios, gone = contest.measure(bench_of(cpu, peers=made), subject)
    assert [found["variant"] for found in rows] == ["peer fp32"]
    assert rows[0]["error"] == pytest.approx(1e-4, rel=0.1)
    assert ratios == []
    assert "native fp32" in gone[0]["left out"]
    assert "allowed of fp32: 1.0e-05" in gone[0]["why"]
    assert "left out: native fp32" in capsys.readouterr().out


def test_a_nan_is_an_infinite_error(cpu):
    relative = sys.modules["contest"].relative
    assert relative(np.array([1.0, np.nan]), np.ones(2)) == float("inf")
    assert relative(np.array([1.0, 1.5]), np.array([1.0, 2.0])) == 0.25


@pytest.mark.slow
def test_the_rehearsal(cpu, tmp_path, monkeypatch, capsys):
    wanted = ("ONNX Runtime fp32", "native fp32", "broken")
    broken = sys.modules["peers"].Peer("broken", "int8", "no-such.onnx", None)
    chosen = tuple(peer for peer in (*cpu.PEERS, broken) if peer.name in wanted)
    monkeypatch.setattr(cpu, "PEERS", chosen)
    monkeypatch.setattr(cpu, "TINY", {"points": MLP(shape=(2,), width=16, depth=2, classes=3)})
    monkeypatch.setattr(sys, "argv", ["cpu.py", "--tiny", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)])
    cpu.main()
    record = json.loads((tmp_path / "cpu.json").read_text())
    loops = {"torch eager fp32, Python loop", "ONNX Runtime fp32, Python loop"}
    timed = {found["variant"] for found in record["rows"] if found["threads"] == 1}
    assert timed == {*wanted[:2], *loops}
    assert all(found["error"] <= 1e-5 and found["cpu_ms"] > 0 < found["wall_ms"] for found in record["rows"])
    assert {found["best_peer"] for found in record["ratios"]} <= timed - {"native fp32"}
    assert {found["variant"] for found in record["processes"]} == set(wanted[:2])
    assert all(found["memory_mb"] > 0 for found in record["processes"])
    assert {operation["kind"] for found in record["profiles"] for operation in found["by_operation"]} >= {"convolve"}
    assert "broken, points" in [line["left out"] for line in record["left_out"]]
    assert {"commit", "date", "processor", "command", "threads", "clock"} <= set(record["facts"])
    assert min(record["floor"]["flop"].values()) > 1e9
    assert (tmp_path / "cpu.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for name in timed:
        assert name in printed
