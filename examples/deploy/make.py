"""Where torch is: export a checkpoint as a denoiser and as a whole sampler. An untrained one stands in for yours.

python examples/deploy/make.py FOLDER [CHECKPOINT]
"""

import sys
from pathlib import Path

from pyflow import checkpoint
from pyflow.export import export
from pyflow.export.build import Order
from pyflow.models import random_network
from pyflow.spec import Spec, UNet


def untrained(folder: Path) -> Path:
    network = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3)
    checkpoint.save(folder, random_network(network), Spec(network, null_label=True))
    return folder


folder = Path(sys.argv[1])
source = Path(sys.argv[2]) if len(sys.argv) > 2 else untrained(folder / "checkpoint")
for what in ("denoiser", "sampler"):
    manifest = export(source, folder / f"{what}.engine", "onnx", Order(what=what, steps=(4,)))
    print(f"{what}.engine: relative error {manifest.proved.worst:.1e} over {manifest.proved.cases} cases")
