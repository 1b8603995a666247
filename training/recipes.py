"""Recipes: a full training setting each, as a function that returns a frozen dataclass."""

from dataclasses import fields, replace
from typing import Any

from pyflow.errors import InvalidInput
from pyflow.spec import MLP, UNet

from .settings import Options, Recipe

__all__ = ["STUDENTS", "TEACHERS", "Options", "Recipe", "recipe"]

# The networks that figures in this project speak of, at 32x32; names tell the parameters.
UNET_1M = UNet(channels=32, multipliers=(1, 1, 2, 2), blocks=1, attention=(16, 8, 4))
UNET_9M = UNet(channels=64, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), heads=4)
UNET_36M = UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), heads=4)
UNET_DIGITS = UNet(shape=(1, 16, 16), channels=24, multipliers=(1, 2, 2), blocks=1, attention=(4,))
MLP_2D = MLP(shape=(2,), width=256, depth=4)


def cfm(data: str = "digits") -> Recipe:
    """A teacher by conditional flow matching."""
    if data == "checkerboard":
        return Recipe("cfm", "cfm", data, MLP_2D, steps=4000, batch=1024, learning_rate=1e-3)
    if data == "digits":
        return Recipe("cfm", "cfm", data, UNET_DIGITS, steps=600, batch=128, learning_rate=2e-3)
    return Recipe("cfm", "cfm", data, UNET_1M, steps=1600, batch=64, learning_rate=1e-3)  # half an hour of one core


def reflow(data: str = "digits") -> Recipe:
    """A student of 1, 2 or 4 steps by reflow and distillation on its teacher's pairs; the guidance is in the pairs."""
    batch, steps = (1024, 4000) if data == "checkerboard" else (128, 500)
    options = Options(times="u-shaped", jump=0.5, huber=0.03)
    return Recipe("reflow", "reflow", data, None, steps, batch, learning_rate=1e-3, label_dropout=0.0, options=options)


TEACHERS = {"cfm": cfm}
STUDENTS = {"reflow": reflow}


def recipe(name: str, data: str, **changes: Any) -> Recipe:
    """A recipe by name, with some of its fields changed."""
    known = TEACHERS | STUDENTS
    if name not in known:
        raise InvalidInput(f"recipe is {name!r}; expected one of {', '.join(known)}")
    unknown = sorted(set(changes) - {field.name for field in fields(Recipe)})
    if unknown:
        raise InvalidInput(
            f"a recipe has no field {', '.join(unknown)}; it has {', '.join(f.name for f in fields(Recipe))}"
        )
    return replace(known[name](data), **changes)
