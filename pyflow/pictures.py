"""Pictures at the border: from a user's image to a network's values and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import native
from .errors import BackendUnavailable, InvalidInput

if TYPE_CHECKING:
    import PIL.Image
    import torch

OUTPUT_TYPES = ("np", "pil", "pt", "latent")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff")
_PILLOW = "pictures as PIL images need Pillow: pip install pillow"
GAP = 1  # pixels between the pictures of a sheet
HIDDEN = 128  # the grey of a hole, where a masked picture is shown


@dataclass(frozen=True)
class Output:
    """What `sample` made: `states`, the network's float values, and for each row its seconds and its network call's."""

    states: np.ndarray  # float32 (batch, *shape)
    row_seconds: np.ndarray
    denoiser_seconds: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """uint8 (batch, height, width, channels)."""
        if self.states.ndim != 4:
            raise InvalidInput(f"the states have shape {self.states.shape}: points, not pictures; read .states")
        return native.to_uint8(self.states)

    def pil(self) -> "list[PIL.Image.Image]":
        return [_pil_of(image) for image in self.images]

    def torch(self) -> "torch.Tensor":
        """float32 (batch, channels, height, width) in 0..1."""
        import torch

        return torch.from_numpy(self.images).permute(0, 3, 1, 2).float() / 255

    def grid(self, columns: int | None = None, scale: int = 1) -> "PIL.Image.Image":
        """All pictures in one image, each pixel `scale` pixels wide."""
        images = self.images
        columns = columns or math.ceil(math.sqrt(len(images)))
        return grid_of(images, columns, scale)

    def of_type(self, output_type: str) -> Any:
        """As diffusers means it: "np" is float32 NHWC in 0..1, "pt" float32 NCHW in 0..1, "latent" the states."""
        kinds = {
            "np": lambda: self.images.astype(np.float32) / np.float32(255),
            "pil": self.pil,
            "pt": self.torch,
            "latent": lambda: self.states,
        }
        return kinds[output_type]()


def grid_of(images: np.ndarray, columns: int, scale: int = 1) -> "PIL.Image.Image":
    """uint8 NHWC pictures in rows of `columns`, a thin gap between them."""
    count, height, width, channels = images.shape
    rows, gap = math.ceil(count / columns), GAP
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 128, np.uint8)
    for index, image in enumerate(images):
        top, left = (place * (size + gap) + gap for place, size in zip(divmod(index, columns), (height, width)))
        sheet[top : top + height, left : left + width] = image
    picture = _pil_of(sheet)
    return picture.resize((picture.width * scale, picture.height * scale), resample=0)


def open_image(path: Path) -> "PIL.Image.Image":
    """The picture in a file, turned as its camera says."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise BackendUnavailable(_PILLOW) from None
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"{path} cannot be read ({error}); expected a picture, such as a PNG") from error


def writable(path: Path, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """The file that --out names, refused before there is anything to write."""
    if not path.parent.is_dir() or path.is_dir():
        raise InvalidInput(f"--out is {str(path)!r}; expected a file in a folder that is there: make the folder first")
    if path.suffix.lower() not in suffixes:
        raise InvalidInput(f"--out is {str(path)!r}; expected a name that ends in {' or '.join(suffixes)}")
    return path


def read_image(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A PIL image or uint8 array as uint8 (height, width, channels), of just the network's size."""
    channels, height, width = shape
    if hasattr(image, "convert"):
        image = _plain("image", image).convert("L" if channels == 1 else "RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise InvalidInput(f"image has dtype {array.dtype}; expected a PIL image or an array of uint8 in 0..255")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape != (height, width, channels):
        raise InvalidInput(f"image has shape {array.shape}; expected {(height, width, channels)}: resize it first")
    return array


def read_mask(mask_image: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A black and white picture as float32 (1, height, width): 1 where it is white, to be generated."""
    _, height, width = shape
    if hasattr(mask_image, "convert"):
        mask_image = _plain("mask_image", mask_image).convert("L")
    array = np.asarray(mask_image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.shape != (height, width):
        raise InvalidInput(f"mask_image has shape {array.shape}; expected {(height, width)}")
    white = 1 if array.dtype == bool else 255
    if array.dtype not in (bool, np.uint8) or not np.isin(array, (0, white)).all():
        values = np.unique(array)[:4].tolist()
        raise InvalidInput(
            f"mask_image has dtype {array.dtype} and values such as {values}; "
            "expected only 0 (keep) and 255 (repaint), or booleans"
        )
    return (array == white).astype(np.float32)[None]


def model_values(image: np.ndarray) -> np.ndarray:
    """uint8 (height, width, channels) to float32 (channels, height, width) in -1..1; `to_uint8` undoes it exactly."""
    return np.ascontiguousarray(image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))


def hidden(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 pictures (..., height, width, channels) with grey holes where masks (..., 1, height, width) are 1."""
    return np.where(np.moveaxis(mask, -3, -1) == 1, np.uint8(HIDDEN), image)


def _plain(name: str, image: "PIL.Image.Image") -> "PIL.Image.Image":
    """A PIL image of eight bits a channel that hides nothing, so that `convert` loses nothing but colours."""
    if image.mode.startswith("I;16"):
        return _pil_of(np.rint(np.asarray(image)[:, :, None] / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InvalidInput(f"{name} has mode {image.mode}, 32 bits a pixel; expected 8 or 16: convert it first")
    if image.has_transparency_data and (np.asarray(image.convert("RGBA"))[..., 3] < 255).any():
        raise InvalidInput(f"{name} is transparent in places; expected an opaque picture: lay it on a background first")
    return image


def _pil_of(image: np.ndarray) -> "PIL.Image.Image":
    try:
        from PIL import Image
    except ImportError:
        raise BackendUnavailable(_PILLOW) from None
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
