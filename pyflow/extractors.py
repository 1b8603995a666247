"""What sees the pictures: feature extractors, whose name is part of every figure that they measure.

`classifier:FOLDER` is the small network of `pyflow train classifier`, `inception[:FILE]` clean-fid's Inception V3,
`dino:FOLDER` a vision transformer of transformers' that lies in a folder.
"""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .artefact import json_bytes, read_json, sha256
from .errors import BackendUnavailable, InvalidInput
from .training import classifier
from .training.data import Dataset

KINDS = ("classifier:FOLDER", "inception", "inception:FILE", "dino:FOLDER")
CACHE, INCEPTION = "PYFLOW_CACHE", "PYFLOW_INCEPTION"  # environment variables: a folder and a file
INCEPTION_FILE, INCEPTION_FEATURES, DOWNLOAD_SECONDS = "inception-2015-12-05.pt", 2048, 10.0
DINO_SIDE = 224
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Seen(NamedTuple):
    """Features (N, D) in float32, and the label read from each picture where the extractor reads labels."""

    features: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class Extractor:
    """`see` takes pictures as uint8 (N, height, width, channels); `identity` tells weights and preprocessing."""

    name: str
    identity: str
    size: int
    see: Callable[[np.ndarray], Seen]
    device: str = "cpu"


def cache_folder() -> Path:
    """Where what is costly to make is kept: PYFLOW_CACHE, or ~/.cache/pyflow."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "pyflow")


def open_extractor(named: str, data: Dataset, device: str = "cpu") -> Extractor:
    """The extractor of one of `KINDS`, to see pictures like those of `data`."""
    kind, _, place = named.partition(":")
    if kind == "classifier" and place:
        return _classifier(Path(place), data, device)
    if kind == "inception":
        return _inception(Path(place) if place else None, device)
    if kind == "dino":
        return _dino(place, device)
    raise InvalidInput(f"features is {named!r}; expected one of {', '.join(KINDS)}")


def _identity(*parts: str) -> str:
    return sha256(json_bytes(parts))


def _in_colour(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3 // images.shape[3], axis=3)


def _channels_first(images: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()


# ---- the classifier of the same data
def _classifier(folder: Path, data: Dataset, device: str) -> Extractor:
    net = classifier.load(folder, data).to(device)
    weights = read_json(folder / classifier.RECORD)["sha256"][classifier.WEIGHTS]  # which `load` has verified

    def see(images: np.ndarray) -> Seen:
        features, labels = classifier.features_and_labels(net, _channels_first(images, device))
        return Seen(features.cpu().numpy(), labels.cpu().numpy())

    name = f"{data.name} classifier, {classifier.FEATURES} features"
    return Extractor(name, _identity("classifier", weights), classifier.FEATURES, see, device)


# ---- clean-fid's Inception
def _inception(named: Path | None, device: str) -> Extractor:
    try:
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer
    except ImportError as error:
        raise BackendUnavailable(
            f'features inception needs clean-fid ({error}): pip install "pyflow-engine[fid]", or name '
            "classifier:FOLDER, which needs no download"
        ) from error
    file = named or (Path(os.environ[INCEPTION]) if os.environ.get(INCEPTION) else None) or _downloaded(InceptionV3W)
    if not file.is_file():
        raise InvalidInput(f"features inception: {file} is no file; expected clean-fid's {INCEPTION_FILE}")
    content = file.read_bytes()
    with _named_as_clean_fid_does(content) as folder:
        net = _opened(InceptionV3W, folder, str(file)).to(device)
    resize = build_resizer("clean")

    @torch.inference_mode()
    def see(images: np.ndarray) -> Seen:
        large = np.stack([resize(image) for image in _in_colour(images)])
        return Seen(net(_channels_first(large, device)).float().cpu().numpy(), None)

    name = f"Inception V3 of clean-fid, {INCEPTION_FEATURES} features"
    return Extractor(name, _identity("inception", "clean", sha256(content)), INCEPTION_FEATURES, see, device)


def _opened(wrapper: Callable[..., torch.nn.Module], folder: Path, named: str) -> torch.nn.Module:
    """What clean-fid itself makes of its file; pyflow loads no TorchScript."""
    try:
        return wrapper(str(folder), download=False, resize_inside=False).eval()
    except (RuntimeError, OSError, AttributeError) as error:
        told = str(error).strip().partition("\n")[0]
        raise InvalidInput(
            f"features inception: {named} does not load ({told}); fetch {INCEPTION_FILE} again"
        ) from error


@contextmanager
def _named_as_clean_fid_does(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / INCEPTION_FILE).write_bytes(content)
        yield Path(folder)


def _downloaded(wrapper: Callable[..., torch.nn.Module]) -> Path:
    """clean-fid's file in the cache, fetched by clean-fid where it is not there; kept only once it has loaded."""
    kept = cache_folder() / INCEPTION_FILE
    if kept.is_file():
        return kept
    from cleanfid.downloads_helper import check_download_inception

    kept.parent.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        socket.setdefaulttimeout(DOWNLOAD_SECONDS)
        try:
            fetched = Path(check_download_inception(fpath=folder))
        except OSError as error:  # urllib's URLError is one
            raise BackendUnavailable(
                f"features inception: {INCEPTION_FILE} did not come from the network ({error}); connect this machine, "
                f"name a copy as inception:FILE or in {INCEPTION}, or use classifier:FOLDER"
            ) from error
        finally:
            socket.setdefaulttimeout(patience)
        _opened(wrapper, fetched.parent, "what was downloaded")
        os.replace(fetched, kept)
    return kept


# ---- a vision transformer in a folder
def _dino(place: str, device: str) -> Extractor:
    folder = Path(place)
    if not place or not (folder / "model.safetensors").is_file():
        raise InvalidInput(
            f"features is 'dino:{place}'; expected dino:FOLDER, of a DINO that transformers saved: config.json and "
            "model.safetensors"
        )
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise BackendUnavailable(
            f'features dino needs transformers ({error}): pip install "pyflow-engine[dino]"'
        ) from error
    try:
        net = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True).eval().to(device)
    except (OSError, ValueError, RuntimeError) as error:
        told = str(error).strip().partition("\n")[0]
        raise InvalidInput(f"features dino: {folder} does not load ({told}); save it again") from error
    mean, deviation = (
        torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
    )

    @torch.inference_mode()
    def see(images: np.ndarray) -> Seen:
        pixels = _channels_first(_in_colour(images), device).float() / 255
        side = (DINO_SIDE, DINO_SIDE)
        large = F.interpolate(pixels, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        told = net(pixel_values=(large - mean) / deviation)
        return Seen(told.last_hidden_state[:, 0].float().cpu().numpy(), None)

    size = int(net.config.hidden_size)
    files = (sha256((folder / name).read_bytes()) for name in ("config.json", "model.safetensors"))
    name = f"{folder.resolve().name}, {size} features"
    return Extractor(name, _identity("dino", str(DINO_SIDE), *files), size, see, device)
