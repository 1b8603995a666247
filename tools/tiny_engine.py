"""Export a tiny untrained picture network as an engine: something real for the wheel's smoke test to sample."""

import sys
import tempfile
from pathlib import Path

import torch

from pyflow import checkpoint, export
from pyflow.models import build
from pyflow.spec import Spec, UNet

torch.manual_seed(0)
network = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3)
model = build(network)
for weight in model.parameters():
    torch.nn.init.normal_(weight, std=0.1)
with tempfile.TemporaryDirectory() as folder:
    checkpoint.save(Path(folder) / "tiny", model, Spec(network, null_label=True))
    export.export(Path(folder) / "tiny", Path(sys.argv[1]))
