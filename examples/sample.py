"""Sample an engine in five lines; without one at hand, this makes a tiny untrained one first.

Usage: python examples/sample.py [ENGINE]
"""

import sys
import tempfile
from pathlib import Path

import pyflow


def tiny_engine(folder: Path) -> Path:
    from pyflow.commands import export_engine, train_teacher

    train_teacher("cfm", "digits", folder / "tiny", steps=20, batch=16)
    export_engine(folder / "tiny", folder / "tiny.engine", "onnx")
    return folder / "tiny.engine"


with tempfile.TemporaryDirectory() as folder:
    engine = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny_engine(Path(folder))

    flow = pyflow.load(engine)
    out = flow.sample(16, steps=4, label=3, seed=0)
    out.grid(scale=4).save(Path(folder) / "threes.png")
    print(flow, out.images.shape, f"{out.row_seconds.sum() * 1e3:.1f} ms for {len(out.images)} pictures in 4 steps")

    # Picture 5 of this seed does not depend on its batch.
    alone = flow.sample(1, steps=4, label=3, seed=0, first=5)
    assert abs(alone.states[0] - out.states[5]).max() < 1e-5
