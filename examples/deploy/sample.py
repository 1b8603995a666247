"""Where the engines run: pyflow and onnxruntime, no torch. Proves both engines again, here, and samples them.

python examples/deploy/sample.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import pyflow
from pyflow.verify import verify

folder = Path(sys.argv[1])
made = {}
for engine in (folder / "denoiser.engine", folder / "sampler.engine"):
    certificate = verify(engine)
    made[engine.stem] = pyflow.load(engine).sample(8, steps=4, label=1, seed=7)
    print(f"{engine.name}: relative error {certificate.worst:.1e} here, 8 pictures {made[engine.stem].images.shape}")
assert "torch" not in sys.modules
difference = np.abs(made["denoiser"].images.astype(int) - made["sampler"].images)
assert difference.max() <= 1, "the loop and the whole sampler make different pictures"
