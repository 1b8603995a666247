"""Data sets as tensors in memory: pictures, labels, and the number of classes."""

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pyflow.errors import BackendUnavailable, InvalidInput

CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES_LIMIT = 2**16
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Dataset:
    name: str
    images: Tensor  # (N, *shape): float32 in -1..1, or uint8, of which `values` makes floats a batch at a time
    labels: Tensor  # int64 (N,)
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def sha256(self) -> str:
        """Of the pictures and their labels, whatever they are called."""
        content = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)} {self.classes}".encode())
        for tensor in (self.images, self.labels):
            content.update(tensor.contiguous().numpy().data)
        return content.hexdigest()

    def of_label(self) -> list[np.ndarray]:
        """The numbers of each class's pictures; of data without classes, of all."""
        return [np.flatnonzero(self.labels.numpy() == label) for label in range(max(1, self.classes))]


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
    """100,000 points of the checkerboard: what it is judged by. Training draws fresh ones."""
    points = checkerboard_points(100_000, torch.Generator().manual_seed({"train": 0, "test": 1}[part]))
    return Dataset("checkerboard", points, torch.zeros(len(points), dtype=torch.int64), classes=0)


def checkerboard_points(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Points of a 4x4 checkerboard of unit cells around the origin; by torch's own generator where none is given."""
    cells = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0], dtype=torch.float32)
    corner = cells[torch.randint(len(cells), (count,), generator=generator)] - 2
    return corner + torch.rand(count, 2, generator=generator)


def cifar10(part: str = "train") -> Dataset:
    """The hub's cifar10: 50,000 to train on and 10,000 held out, downloaded once into the cache of `datasets`."""
    hub = _datasets()
    try:
        return _labelled_pictures("cifar10", part, hub.load_dataset("cifar10", split=part), lambda: len(CIFAR_NAMES))
    except OSError as error:  # its ConnectionError is one
        raise BackendUnavailable(
            f"cifar10 did not come from the Hugging Face hub ({error}); connect this machine, or give --data the "
            "folder of its parquet files"
        ) from error


def parquet(folder: Path, part: str = "train") -> Dataset:
    """Pictures from `train-*.parquet` and `test-*.parquet`, with the columns of the hub's cifar10."""
    hub, files = _datasets(), sorted(folder.glob(f"{part}-*.parquet"))
    if not files:
        raise InvalidInput(
            f"{folder} holds no {part}-*.parquet; expected files as of the hub's cifar10, {part}-00000-of-00001.parquet"
        )
    named = {part: [glob.escape(str(file)) for file in files]}
    with _reading(part, folder):
        rows = hub.load_dataset("parquet", data_files=named, split=part, streaming=True)  # leaves no copy in a cache
        return _labelled_pictures(folder.resolve().name, part, rows, lambda: len(_parquet_classes(folder, part)))


def _parquet_classes(folder: Path, part: str) -> list[str]:
    """The names that the files tell, else numbers up to the largest label; those of `train` hold for every part."""
    from datasets import ClassLabel, Features
    from pyarrow import compute
    from pyarrow import parquet as tables

    files = sorted(folder.glob("train-*.parquet")) or sorted(folder.glob(f"{part}-*.parquet"))
    label = Features.from_arrow_schema(tables.read_schema(files[0])).get("label")
    if isinstance(label, ClassLabel):
        return list(label.names)
    largest = [compute.max(tables.read_table(file, columns=["label"])["label"]).as_py() or 0 for file in files]
    return [str(number) for number in range(min(max(0, *largest) + 1, CLASSES_LIMIT))]


def picture_folder(folder: Path, part: str = "train") -> Dataset:
    """Pictures of FOLDER/train/CLASS and FOLDER/test/CLASS; without classes, of FOLDER/train and /test, or of FOLDER.

    The classes are numbered as their names in `train` sort.
    """
    hub, parted = _datasets(), (folder / "train").is_dir()
    home = folder / part if parted else folder
    classes, here, loose = _classes(folder / "train"), _classes(home) if parted else [], _suffixes(home)
    if not (here or loose) or not (parted or part == "train"):
        raise InvalidInput(
            f"{folder} holds no pictures for {part}; expected {part}/CLASS/*.png, {part}/*.png or {part}-*.parquet"
            + ", or *.png alone" * (part == "train")
        )
    strangers = [name for name in here if name not in classes]
    if strangers or (classes and loose):
        found = f"the classes {', '.join(strangers[:3])}" if strangers else "pictures beside its classes"
        raise InvalidInput(f"{part} of {folder.name} has {found}; expected {', '.join(classes) or 'no classes'} alone")
    suffixes = set().union(loose, *(_suffixes(home / name) for name in here))
    stem = glob.escape(str(home)) + ("/*/*" if classes else "/*")
    named = {part: [stem + suffix for suffix in sorted(suffixes)]}
    with _reading(part, folder):
        rows = hub.load_dataset("imagefolder", data_files=named, split=part, drop_labels=not classes, streaming=True)
        number = [classes.index(name) for name in rows.features["label"].names] if classes else [0]

        def pictures() -> Iterator[Row]:
            for row in rows.cast_column("image", hub.Image(decode=False)):
                file = Path(row["image"]["path"])
                place = f"{part} of {folder.name}, {'/'.join(file.parts[-2:])},"
                yield place, file.read_bytes(), number[row["label"]] if classes else 0

        return _dataset(folder.resolve().name, pictures(), len(classes))


def _classes(place: Path) -> list[str]:
    """The names of the folders in `place` that hold pictures."""
    return sorted(path.name for path in _visible(place) if path.is_dir() and _suffixes(path))


def _suffixes(place: Path) -> set[str]:
    """How the names of the pictures in `place` end."""
    return {path.suffix for path in _visible(place) if path.suffix.lower() in SUFFIXES and path.is_file()}


def _visible(place: Path) -> Iterator[Path]:
    return (path for path in (place.iterdir() if place.is_dir() else ()) if not path.name.startswith("."))


@contextmanager
def _reading(part: str, folder: Path) -> Iterator[None]:
    try:
        yield
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


def _labelled_pictures(name: str, part: str, rows: Any, classes: Callable[[], int]) -> Dataset:
    """Rows of (img, label) or (image, label), as `datasets` gives them."""
    import datasets

    column = _image_column(f"{part} of {name}", rows.features or {})
    encoded = rows.cast_column(column, datasets.Image(decode=False))
    numbered = (
        (f"{part} of {name}, picture {index}", (row[column] or {}).get("bytes") or b"", row["label"])
        for index, row in enumerate(encoded)
    )
    return _dataset(name, numbered, classes())


Row = tuple[str, bytes, int]  # where it stands, the encoded picture, its label


def _dataset(name: str, rows: Iterable[Row], classes: int) -> Dataset:
    """The pictures as tensors; the first one tells the size of all."""
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    for place, encoded, label in rows:
        pixels = _pixels(encoded, place)
        if pictures and pixels.shape != pictures[0].shape:
            raise InvalidInput(f"{place} has shape {pixels.shape}; expected {pictures[0].shape}, as those before it")
        if label not in range(max(1, classes)):
            raise InvalidInput(f"{place} has the label {label}; expected 0 to {classes - 1}")
        pictures.append(pixels)
        labels.append(label)
    if not pictures:
        raise InvalidInput(f"{name} holds no pictures; expected some")
    # np.stack keeps Pillow's order in memory, channels last, and torch's derivative of a group norm then fails.
    images = np.ascontiguousarray(np.stack(pictures))
    return Dataset(name, torch.from_numpy(images), torch.tensor(labels), classes)


def _image_column(where: str, columns: dict[str, Any]) -> str:
    """The name of the column that holds the pictures."""
    name, label = "img" if "img" in columns else "image", getattr(columns.get("label"), "dtype", "")
    image = columns.get(name)
    encoded = set(image) == {"bytes", "path"} if isinstance(image, dict) else type(image).__name__ == "Image"
    if not encoded or "int" not in label:
        raise InvalidInput(
            f"{where} has the columns {', '.join(columns) or 'none'}; expected img or image (bytes and path) and label "
            "(integers): rename yours, or write the pictures as files, train/CLASS/*.png"
        )
    return name


def _pixels(encoded: bytes, place: str) -> np.ndarray:
    """uint8 (3, height, width)."""
    import PIL.Image

    try:
        with PIL.Image.open(BytesIO(encoded)) as picture:
            if getattr(picture, "is_animated", False):
                raise InvalidInput(f"{place} is animated; expected one picture")
            if picture.mode != "RGB":
                raise InvalidInput(f"{place} has the mode {picture.mode!r}; expected 'RGB', three colours of 8 bits")
            if any("16" in part for tile in picture.tile for part in _words(tile.args)):  # Pillow reads it as 8
                raise InvalidInput(f"{place} has 16 bits a colour; expected 8")
            return np.asarray(picture).transpose(2, 0, 1)
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InvalidInput(f"{place} is no picture that Pillow reads ({error}); fetch its file again") from error


def _words(arguments: Any) -> list[str]:
    return [word for word in (arguments if isinstance(arguments, tuple) else (arguments,)) if isinstance(word, str)]


# What is known as a law, of which training draws fresh points.
LAWS: dict[str, Callable[[int], Tensor]] = {"checkerboard": checkerboard_points}
DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": digits, "checkerboard": checkerboard, "cifar10": cifar10}


def name_of(data: str) -> str:
    """What stands in records: a known name, or that of a folder, wherever it lies."""
    return data if data in DATASETS else _folder(data).resolve().name


def _folder(data: str) -> Path:
    folder = Path(data)
    if not folder.is_dir():
        raise InvalidInput(
            f"data is {data!r}; expected one of {', '.join(DATASETS)}, or a folder of parquet files or pictures that "
            "is there: --data FOLDER"
        )
    name = folder.resolve().name
    if name in DATASETS:
        raise InvalidInput(f"data is {data!r}, and {name} means pyflow's own; expected another name: rename the folder")
    return folder


def load_dataset(name: str, part: str = "train") -> Dataset:
    """A data set by its name, or the one in a folder of parquet files or of pictures."""
    if name in DATASETS:
        return DATASETS[name](part)
    folder = _folder(name)
    return parquet(folder, part) if any(folder.glob("*.parquet")) else picture_folder(folder, part)


def class_names(name: str, classes: int) -> list[str]:
    """What people call the classes of a data set: CIFAR-10's own, those that files or folders tell, else numbers."""
    folder, found, numbers = Path(name), [], [str(label) for label in range(classes)]
    if name not in DATASETS and folder.is_dir():
        tables = any(folder.glob("*.parquet"))
        found = _parquet_classes(folder, "test") if tables else _classes(folder / "train")
        if tables and "cifar10" in folder.resolve().name and found == numbers[:10]:  # files that do not tell its names
            found = list(CIFAR_NAMES)
    elif name == "cifar10":
        found = list(CIFAR_NAMES)
    return found if len(found) == classes else numbers
