"""`benchmarks/precision.py` at its smallest: every figure is there, and what cannot be built says why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pyflow.training import classifier
from tiny import save

from pyflow import commands
from pyflow.spec import Spec, UNet

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "precision.py"
NETWORK = UNet(shape=(1, 16, 16), channels=8, multipliers=(1, 2), blocks=1, attention=(8,), heads=2, classes=10)


@pytest.fixture
def judge(tmp_path, monkeypatch) -> Path:
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda dataset: train(dataset, steps=20))
    assert commands.train_judge(tmp_path / "judge", "digits")
    return tmp_path / "judge"


def compared(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(SCRIPT), "--steps", "1", "2", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_engine_has_its_figures_or_its_sentence(tmp_path, judge):
    teacher = save(tmp_path / "teacher", Spec(NETWORK, null_label=True))
    subject = ("--subject", "a teacher", str(teacher), str(judge), "digits")
    done = compared(*subject, "--engines", "onnx fp32", "onnx int8", "abacus bf16", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "precision.json").read_text())
    assert {"command", "commit", "date", "processor"} <= set(kept["facts"])
    (subject,) = kept["subjects"]
    assert (subject["name"], subject["guidance"]) == ("a teacher", 2.0)
    assert subject["features"] == "digits classifier, 48 features"
    assert [line["engine"] for line in subject["left_out"]] == ["abacus bf16"]
    assert "expected one of onnx" in subject["left_out"][0]["why"]
    eager, exact, coarse = subject["engines"]
    assert [row["engine"] for row in (eager, exact, coarse)] == ["torch eager fp32", "onnx fp32", "onnx int8"]
    assert eager["forward_error"] == 0
    assert exact["forward_error"] < 1e-5 < coarse["forward_error"] < 0.5
    assert exact["certificate"]["kept"]
    for steps in ("1", "2"):
        own, near, far = (row["steps"][steps] for row in (eager, exact, coarse))
        assert (own["psnr"], own["change"]) == (200, 0)
        assert near["psnr"] > 90 > far["psnr"] > 15
        assert abs(near["change"]) < 1e-3
        assert far["change"] == pytest.approx(far["distance"] - own["distance"], abs=2e-6)
    assert (tmp_path / "precision.png").stat().st_size > 10_000
    assert "left out: abacus bf16" in done.stdout


def test_what_is_not_there_is_one_sentence_before_anything_is_measured(tmp_path, judge):
    done = compared(
        "--subject", "teacher", str(tmp_path / "none"), str(judge), "digits", "--out", str(tmp_path / "out")
    )
    assert done.returncode == 1
    assert done.stderr.startswith("precision.py: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()
