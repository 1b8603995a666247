"""`benchmarks/methods.py` at its smallest: a method from data and one from pairs, each with its figures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pyflow.training import classifier
from pyflow.training.recipes import recipe
from tiny import save

from pyflow import commands
from pyflow.spec import Spec

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "methods.py"


@pytest.mark.slow
def test_each_method_has_its_figures(tmp_path, monkeypatch):
    train = classifier.train_classifier
    monkeypatch.setattr(classifier, "train_classifier", lambda dataset: train(dataset, steps=20))
    assert commands.train_judge(tmp_path / "judge", "digits")
    teacher = save(tmp_path / "teacher", Spec(recipe("cfm", "digits").network, null_label=True))
    sizes = ("--steps", "2", "--batch", "8", "--pairs", "16", "--methods", "lsd", "lines")
    places = ("--teacher", teacher, "--judge", tmp_path / "judge", "--runs", tmp_path / "runs", "--out", tmp_path)
    command = [sys.executable, str(SCRIPT), *map(str, places), *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for _ in range(2):  # the second time all is reused
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "methods-digits.json").read_text())
    assert {"command", "commit", "date", "processor"} <= set(kept["facts"])
    assert (kept["data"], kept["features"]) == ("digits", "digits classifier, 48 features")
    assert [row["method"] for row in kept["methods"]] == ["lsd", "lines"]
    for row in kept["methods"]:
        assert row["seconds"] > 0
        assert math.isfinite(row["first_loss"])
        assert set(row["steps"]) == {"1", "4", "16"}
        assert all(cell["distance"] > 0 for cell in row["steps"].values())
    assert (tmp_path / "methods-digits.png").stat().st_size > 10_000
