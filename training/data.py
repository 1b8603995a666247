"""Data sets as tensors in memory: pictures, labels, and the number of classes."""

import glob
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyflow.errors import BackendUnavailable, InvalidInput

CIFAR_CLASSES = 10


@dataclass(frozen=True)
class Dataset:
    name: str
    images: Tensor  # (N, *shape): float32 in -1..1, or uint8, of which `values` makes floats a batch at a time
    labels: Tensor  # int64 (N,)
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])


def values(images: Tensor) -> Tensor:
    """What a network sees of them. The 50,000 pictures of CIFAR-10 take 154 MB as uint8, 614 MB as float32."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


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


def cifar10(part: str = "train") -> Dataset:
    """The hub's cifar10: 50,000 to train on and 10,000 held out, downloaded once into the cache of `datasets`."""
    hub = _datasets()
    try:
        return _labelled_pictures("cifar10", part, hub.load_dataset("cifar10", split=part))
    except OSError as error:  # its ConnectionError is one
        raise BackendUnavailable(
            f"cifar10 did not come from the Hugging Face hub ({error}); connect this machine, or give --data the "
            "folder of its parquet files"
        ) from error


def parquet(folder: Path, part: str = "train") -> Dataset:
    """Pictures of ten classes from `train-*.parquet` and `test-*.parquet`, with the columns of the hub's cifar10."""
    hub, files = _datasets(), sorted(folder.glob(f"{part}-*.parquet"))
    if not files:
        raise InvalidInput(
            f"{folder} holds no {part}-*.parquet; expected files as of the hub's cifar10, {part}-00000-of-00001.parquet"
        )
    named = {part: [glob.escape(str(file)) for file in files]}
    try:
        rows = hub.load_dataset("parquet", data_files=named, split=part, streaming=True)  # leaves no copy in a cache
        return _labelled_pictures(folder.resolve().name, part, rows)
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:  # Arrow's own
        told = str(error).partition("\n")[0] or type(error).__name__
        raise InvalidInput(f"{part} of {folder.name} cannot be read ({told}); fetch its files again") from error


def _datasets() -> Any:
    try:
        import datasets
        import PIL.Image  # noqa: F401  # `datasets` itself does without
    except ImportError as error:
        raise BackendUnavailable(
            f'CIFAR-10 is read with Hugging Face datasets and Pillow ({error}): pip install "pyflow-engine[data]"'
        ) from None
    return datasets


def _labelled_pictures(name: str, part: str, rows: Any) -> Dataset:
    """Rows of (img, label), as `datasets` gives them, as tensors; the first picture tells the size of all."""
    import datasets

    _refuse_other_columns(f"{part} of {name}", rows.features or {})
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    for index, row in enumerate(rows.cast_column("img", datasets.Image(decode=False))):
        place = f"{part} of {name}, picture {index}"
        pixels = _pixels(row["img"], place)
        if pictures and pixels.shape != pictures[0].shape:
            raise InvalidInput(f"{place} has shape {pixels.shape}; expected {pictures[0].shape}, as those before it")
        if row["label"] not in range(CIFAR_CLASSES):
            raise InvalidInput(f"{place} has the label {row['label']}; expected 0 to {CIFAR_CLASSES - 1}")
        pictures.append(pixels)
        labels.append(row["label"])
    return Dataset(name, torch.from_numpy(np.stack(pictures)), torch.tensor(labels), CIFAR_CLASSES)


def _refuse_other_columns(where: str, columns: dict[str, Any]) -> None:
    image, label = columns.get("img"), getattr(columns.get("label"), "dtype", "")
    encoded = set(image) == {"bytes", "path"} if isinstance(image, dict) else type(image).__name__ == "Image"
    if not encoded or "int" not in label:
        raise InvalidInput(
            f"{where} has the columns {', '.join(columns) or 'none'}; expected img (bytes and path) and label "
            "(integers), as in the hub's cifar10"
        )


def _pixels(encoded: dict[str, Any] | None, place: str) -> np.ndarray:
    """uint8 (3, height, width)."""
    import PIL.Image

    try:
        with PIL.Image.open(BytesIO((encoded or {}).get("bytes") or b"")) as picture:
            if picture.mode != "RGB":
                raise InvalidInput(f"{place} has the mode {picture.mode!r}; expected 'RGB', three colours of 8 bits")
            return np.asarray(picture).transpose(2, 0, 1)
    except (OSError, SyntaxError) as error:
        raise InvalidInput(f"{place} is no picture that Pillow reads ({error}); fetch its file again") from error


DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": digits, "checkerboard": checkerboard, "cifar10": cifar10}


def load_dataset(name: str, part: str = "train") -> Dataset:
    """A data set by its name, or the one in a folder of parquet files."""
    if name in DATASETS:
        return DATASETS[name](part)
    if Path(name).is_dir():
        return parquet(Path(name), part)
    raise InvalidInput(
        f"data is {name!r}; expected one of {', '.join(DATASETS)}, or a folder of parquet files that is there"
    )
