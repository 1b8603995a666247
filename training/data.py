"""Data sets as tensors in memory: pictures in [-1, 1], labels, and the number of classes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyflow.errors import BackendUnavailable, InvalidInput


@dataclass(frozen=True)
class Dataset:
    name: str
    images: Tensor  # float32 (N, *shape)
    labels: Tensor  # int64 (N,)
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])


def digits(part: str = "train") -> Dataset:
    """scikit-learn's handwritten digits, 8x8 enlarged to 16x16: 1497 to train on and 300 held out; no download."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BackendUnavailable('the digits come with scikit-learn: pip install "pyflow-engine[demo]"') from None
    pictures, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    chosen = {"train": order[300:], "test": order[:300]}[part]
    small = torch.from_numpy(pictures).float().reshape(-1, 1, 8, 8)[chosen] / 8 - 1
    images = F.interpolate(small, size=(16, 16), mode="bicubic", align_corners=False).clamp(-1, 1)
    return Dataset("digits", images, torch.from_numpy(labels).long()[chosen], classes=10)


def checkerboard(part: str = "train") -> Dataset:
    """Points of a 4x4 checkerboard of unit cells around the origin."""
    generator = torch.Generator().manual_seed({"train": 0, "test": 1}[part])
    cells = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0], dtype=torch.float32)
    count = 100_000
    corner = cells[torch.randint(len(cells), (count,), generator=generator)] - 2
    points = corner + torch.rand(count, 2, generator=generator)
    return Dataset("checkerboard", points, torch.zeros(count, dtype=torch.int64), classes=0)


DATASETS = {"digits": digits, "checkerboard": checkerboard}


def load_dataset(name: str, part: str = "train") -> Dataset:
    if name not in DATASETS:
        raise InvalidInput(f"data is {name!r}; expected one of {', '.join(DATASETS)}")
    return DATASETS[name](part)
