"""What the installed wheel must do with numpy and onnxruntime alone; run outside the source tree."""

import subprocess
import sys
import time

started = time.perf_counter()
import pyflow  # noqa: E402

import_seconds = time.perf_counter() - started
import numpy as np  # noqa: E402

from pyflow import native  # noqa: E402
from pyflow.errors import InvalidInput  # noqa: E402

assert "site-packages" in pyflow.__file__, pyflow.__file__
assert "torch" not in sys.modules
assert "onnxruntime" not in sys.modules
assert import_seconds < 0.3, f"importing pyflow took {import_seconds:.2f} s"

flow = pyflow.load(sys.argv[1])
eight = flow.sample(8, steps=4, label=1, guidance=2.0, seed=7)
alone = flow.sample(1, steps=4, label=1, guidance=2.0, seed=7, first=3)
assert eight.images.shape == (8, 8, 8, 1)
assert np.abs(eight.states[3] - alone.states[0]).max() < 1e-5
refusal = ""
try:
    flow.sample(1, label=99)
except InvalidInput as error:
    refusal = str(error)
assert "99" in refusal, "a label outside the classes was accepted"
subprocess.run([sys.executable, "-m", "pyflow.cli", "info"], check=True)
print(
    f"wheel: imported in {import_seconds * 1e3:.0f} ms, {native.isa()}, sampled {len(eight.images)} pictures in 4 steps"
)
