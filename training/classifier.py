"""A small classifier of a data set: the feature extractor of this project's distances, and the judge of labels."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pyflow import checkpoint
from pyflow.artefact import read_json
from pyflow.errors import InvalidInput

from .data import Dataset, values

FEATURES = 48
RECORD, WEIGHTS = "classifier.json", "weights.safetensors"
SETTING = {"steps": 250, "batch": 128, "seed": 0}


class Classifier(nn.Module):
    """Three convolutions and a head; `features` is the layer before the head."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = (shape[0], 24, 48, FEATURES)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        h = images
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            h = F.silu(norm(convolution(h)))
            h = F.max_pool2d(h, 2) if level < 2 else h.mean((2, 3))
        return h

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def train_classifier(
    data: Dataset, steps: int = SETTING["steps"], batch: int = SETTING["batch"], seed: int = SETTING["seed"]
) -> Classifier:
    """Train on pictures shifted by up to a pixel, with label smoothing; the loss ends near its floor in seconds."""
    torch.manual_seed(seed)
    net = Classifier(data.shape, data.classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for images, labels in tqdm(_batches(data, steps, batch), total=steps, desc="classifier", unit="step"):
        loss = F.cross_entropy(net(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _batches(data: Dataset, steps: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(steps):
        chosen = torch.randint(len(data.images), (batch,))
        shift = torch.randint(-1, 2, (2,)).tolist()
        yield values(data.images[chosen]).roll(shift, dims=(2, 3)), data.labels[chosen]


@torch.inference_mode()
def features_and_labels(net: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features (N, FEATURES) and the label read from each picture."""
    features = torch.cat([net.features(values(part)) for part in images.split(512)])
    return features, net.head(features).argmax(1)


def is_classifier(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def train(folder: Path, data: Dataset, **setting: int) -> None:
    """Publish a classifier of `data` in `folder`; `setting` is `train_classifier`'s."""
    record = {"format": checkpoint.FORMAT, "data": data.name, **SETTING, **setting}
    checkpoint.save_arrays(folder, RECORD, record, {WEIGHTS: train_classifier(data, **setting).state_dict()})


def refuse_another(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a classifier whose record tells another data set or setting than what was asked for."""
    record = read_json(folder / RECORD)
    told = record if isinstance(record, dict) else {}
    changed = [f"{name} {told[name]!r}" for name, value in asked.items() if name in told and told[name] != value]
    if changed:
        raise InvalidInput(
            f"{folder} holds another classifier ({', '.join(changed)}); name another folder or remove it"
        )


def load(folder: Path, data: Dataset) -> Classifier:
    """The classifier in `folder`, refused unless it was trained on `data`."""
    if not is_classifier(folder):
        raise InvalidInput(
            f"{folder} holds no {RECORD}; expected a classifier, such as `pyflow demo` makes in runs/demo/classifier"
        )
    weights = checkpoint.load_arrays(folder, RECORD, WEIGHTS)
    trained_on = read_json(folder / RECORD).get("data")
    if trained_on != data.name:
        raise InvalidInput(f"{folder} is a classifier of {trained_on!r}; expected one of {data.name!r}: name another")
    net = Classifier(data.shape, data.classes)
    net.load_state_dict(weights)
    return net.eval()
