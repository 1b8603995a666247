"""What a generator's pictures are worth, judged by a classifier: Fréchet distance of its features, labels read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .engines.runner import Runner
from .metrics import frechet_distance, label_accuracy
from .sampler import Flow
from .spec import Spec
from .training.classifier import Classifier, features_and_labels, judge
from .training.data import load_dataset

PICTURES, BATCH = 300, 100


@dataclass(frozen=True)
class Judge:
    """A classifier and the features of the real pictures."""

    classifier: Classifier
    real: np.ndarray
    accuracy: float  # on held-out pictures
    floor: float  # the distance of held-out real pictures
    name: str

    @classmethod
    def of(cls, folder: Path, data: str) -> "Judge":
        """The judge whose classifier lies in `folder`; one is trained there first if there is none."""
        shown, held_out = load_dataset(data), load_dataset(data, "test")
        classifier, accuracy = judge(folder, shown, held_out)
        real = features_and_labels(classifier, shown.images)[0].numpy()
        floor = frechet_distance(features_and_labels(classifier, held_out.images)[0].numpy(), real)
        return cls(classifier, real, accuracy, floor, f"{data} classifier, {real.shape[1]} features")

    def of_flow(self, flow: Flow, steps: int, guidance: float) -> tuple[float, float, np.ndarray]:
        """Fréchet distance, label accuracy and the pictures, the same seed and labels for every flow."""
        labels = np.arange(PICTURES) % flow.spec.network.classes
        made = [
            flow.sample(
                BATCH, steps=steps, guidance=guidance, first=first, label=labels[first : first + BATCH].tolist()
            )
            for first in range(0, PICTURES, BATCH)
        ]
        states = torch.from_numpy(np.concatenate([output.states for output in made])).clamp(-1, 1)
        features, read = features_and_labels(self.classifier, states)
        images = np.concatenate([output.images for output in made])
        return frechet_distance(features.numpy(), self.real), label_accuracy(read.numpy(), labels), images


def change(judge: Judge, reference: Flow, runner: Runner, spec: Spec, steps: tuple[int, ...], guidance: float) -> Any:
    """The distances of an engine beside those of its float32 checkpoint, by step count, for its certificate."""
    engine = Flow(runner, spec, "judged", reference.identity)
    found: dict[str, Any] = {"features": judge.name, "pictures": PICTURES, "guidance": guidance}
    for name, flow in (("checkpoint", reference), ("engine", engine)):
        found[name] = {str(count): round(judge.of_flow(flow, count, guidance)[0], 6) for count in steps}
    return found
