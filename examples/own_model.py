"""A network of one's own: any torch module called net(x, s, t, label), trained, exported, sampled without its code."""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from pyflow.training.batch import unpaired
from pyflow.training.recipes import recipe
from pyflow.training.trainer import train
from torch import Tensor, nn

import pyflow
from pyflow.export import export
from pyflow.spec import Own, Spec

CLASSES, SPREAD = 8, 0.1


class TinyNet(nn.Module):
    """The state, a few waves of the time and a vector for the label, mixed by three layers."""

    def __init__(self, width: int = 96, waves: int = 4) -> None:
        super().__init__()
        self.register_buffer("waves", math.pi * torch.arange(1.0, waves + 1))
        self.label = nn.Embedding(CLASSES + 1, width)  # the last one is the null label
        self.enter = nn.Linear(2 + 2 * waves, width)
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        angles = s[:, None] * self.waves  # at one time only; a network of times=2 looks at t too
        h = torch.cat([x, angles.cos(), angles.sin()], dim=1)
        h = torch.relu(self.enter(h) + self.label(label))
        return self.leave(torch.relu(self.middle(h)))


def clouds(count: int) -> tuple[Tensor, Tensor]:
    """Points around eight centres on a circle of radius 2, each with the number of its centre."""
    label = torch.arange(count) % CLASSES
    return centres(label) + SPREAD * torch.randn(count, 2), label


def centres(label: Tensor) -> Tensor:
    angle = 2 * math.pi * label / CLASSES
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1)


torch.manual_seed(0)
spec = Spec(Own("TinyNet", shape=(2,), classes=CLASSES), null_label=True)
setting = recipe("cfm", "digits", network=spec.network, steps=800, batch=256, learning_rate=3e-3)

with tempfile.TemporaryDirectory() as folder:
    checkpoint, engine = Path(folder) / "tiny", Path(folder) / "tiny.engine"
    train(setting, spec, unpaired(*clouds(20_000)), checkpoint, start=TinyNet())
    export(checkpoint, engine, "onnx", model=TinyNet())

    label = torch.arange(400) % CLASSES
    for name, flow in {"module": pyflow.load(checkpoint, model=TinyNet()), "engine": pyflow.load(engine)}.items():
        points = flow.sample(len(label), steps=20, label=label.tolist(), seed=0).states
        away = np.linalg.norm(points - centres(label).numpy(), axis=1)
        print(f"{name}: {np.mean(away < 5 * SPREAD):.1%} of the points lie within {5 * SPREAD:.1f} of their centre")
        assert np.mean(away < 5 * SPREAD) > 0.95, "the network did not learn its clouds"
