"""pyflow ships image generators that need 1, 2 or 4 network calls instead of hundreds.

import pyflow

flow = pyflow.load("student.engine")
flow.sample(16, steps=1, label=3).grid().save("threes.png")
"""

from importlib import metadata
from typing import Any

from .loading import load
from .sampler import Flow

__all__ = ["Flow", "inpaint", "load", "sample"]
__version__ = metadata.version("pyflow-engine")


def sample(source: Any, batch: int = 1, **arguments: Any) -> Any:
    """`load(source).sample(batch, ...)`: for one call; to sample again, keep what `load` returns."""
    return load(source).sample(batch, **arguments)


def inpaint(source: Any, image: Any, mask_image: Any, **arguments: Any) -> Any:
    """`load(source).inpaint(image, mask_image, ...)`: for one call."""
    return load(source).inpaint(image, mask_image, **arguments)
