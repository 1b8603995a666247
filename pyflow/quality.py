"""What a generator's pictures are worth, judged by a classifier: Fréchet distance of its features, labels read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .engines.runner import Runner
from .errors import InvalidInput
from .export.build import Order
from .metrics import frechet_distance, label_accuracy
from .sampler import Flow
from .spec import Spec
from .training import classifier
from .training.classifier import Classifier, features_and_labels
from .training.data import load_dataset

PICTURES, BATCH = 300, 100


@dataclass(frozen=True)
class Judge:
    """A classifier and the features of the real pictures."""

    net: Classifier
    shape: tuple[int, ...]
    classes: int
    real: np.ndarray
    accuracy: float  # on held-out pictures
    floor: float  # the distance of held-out real pictures
    data: str

    @classmethod
    def of(cls, folder: Path, data: str) -> "Judge":
        """The judge whose classifier of `data` lies in `folder`."""
        shown, held_out = load_dataset(data), load_dataset(data, "test")
        net = classifier.load(folder, shown)
        real = features_and_labels(net, shown.images)[0].numpy()
        features, read = features_and_labels(net, held_out.images)
        accuracy = label_accuracy(read.numpy(), held_out.labels.numpy())
        return cls(net, shown.shape, shown.classes, real, accuracy, frechet_distance(features.numpy(), real), data)

    def refuse_misfit(self, spec: Spec) -> None:
        """Refuse a network that does not make what is judged."""
        network = spec.network
        if network.shape != self.shape or network.classes != self.classes:
            raise InvalidInput(
                f"the network makes {network.shape} of {network.classes} classes; expected {self.shape} of "
                f"{self.classes}, which the judge of {self.data!r} reads: name another --judge and --data, or none"
            )

    def settings(self, order: Order) -> dict[str, Any]:
        """What the distances of an engine are measured with."""
        return {
            "features": f"{self.data} classifier, {self.real.shape[1]} features",
            "pictures": PICTURES,
            "steps": list(order.steps),
            "guidance": order.guidance,
            "solver": order.solver,
            "grid": order.grid,
        }

    def of_flow(
        self,
        flow: Flow,
        steps: int,
        guidance: float,
        solver: str | None = None,
        grid: str = "uniform",
        pictures: int = PICTURES,
    ) -> tuple[float, float, np.ndarray]:
        """Fréchet distance, label accuracy and the pictures, the same seed and labels for every flow."""
        labels = np.arange(pictures) % flow.spec.network.classes
        plan: dict[str, Any] = {"steps": steps, "guidance": guidance, "solver": solver, "grid": grid}
        made = [
            flow.sample(min(BATCH, pictures - first), first=first, label=labels[first : first + BATCH].tolist(), **plan)
            for first in range(0, pictures, BATCH)
        ]
        states = torch.from_numpy(np.concatenate([output.states for output in made])).clamp(-1, 1)
        features, read = features_and_labels(self.net, states)
        images = np.concatenate([output.images for output in made])
        return frechet_distance(features.numpy(), self.real), label_accuracy(read.numpy(), labels), images


def change(judge: Judge, reference: Flow, order: Order, runner: Runner, spec: Spec) -> dict[str, Any]:
    """The distances of an engine beside those of its float32 checkpoint, by step count, for its certificate."""
    engine = Flow(runner, spec, "judged", reference.identity)
    found = judge.settings(order)
    for name, flow in (("checkpoint", reference), ("engine", engine)):
        found[name] = {
            str(count): round(judge.of_flow(flow, count, order.guidance, order.solver, order.grid)[0], 6)
            for count in order.steps
        }
    return found
