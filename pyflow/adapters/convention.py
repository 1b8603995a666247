"""Where diffusers' words meet pyflow's: the only file that knows how one is told in the other.

diffusers' timesteps fall from 1000 (noise) to 0 (data) where pyflow's time rises from 0 to 1. A velocity by a time that
runs the other way has the other sign: on the linear path diffusers' is noise - image, and pyflow's is image - noise.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core import IMAGE, NOISE, VELOCITY, Array, V
from ..errors import InvalidArtefact, InvalidInput

TIMESTEPS = 1000
PREDICTION_TYPES = {"epsilon": NOISE, "sample": IMAGE, "v_prediction": V}


def timestep_of(t: Array) -> Array:
    return (1 - t) * TIMESTEPS


def time_of(timestep: Array) -> Array:
    return 1 - timestep / TIMESTEPS


def turned(prediction: str, value: Array) -> Array:
    """What pyflow's network says as a scheduler of diffusers reads it, and the other way round."""
    return -value if prediction == VELOCITY else value


def time_of_index(index: int, indices: int) -> float:
    """The time of an entry in a table of betas: entry 0 is one beta away from the data, entry -1 is the data."""
    return 1 - (index + 1) / indices


def index_of_time(t: float, indices: int) -> int:
    exact = (1 - t) * indices - 1
    if abs(exact - round(exact)) > 1e-3:  # a time that came through float32 is within 1e-4 at 1000 entries
        raise InvalidInput(f"t is {t}, between two of the {indices} timesteps; expected 1 - (index + 1)/{indices}")
    return round(exact)


def safe_arguments(folder: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `from_pretrained` that reads no pickle."""
    if arguments.get("use_safetensors") is False:
        raise InvalidInput("use_safetensors is False; expected True: a .bin file is a pickle, and pyflow loads none")
    for pickled in Path(folder, arguments.get("subfolder") or "").rglob("*.bin"):
        if not any(pickled.parent.glob("*.safetensors")):
            raise InvalidArtefact(
                f"{pickled} is a pickle, and pyflow loads none; expected .safetensors beside it: where you trust it, "
                "load it with diffusers, and save_pretrained writes the safe file"
            )
    return {**arguments, "use_safetensors": True}


def refuse_unsafe_save(save: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    if not inspect.signature(save).bind(*arguments, **named).arguments.get("safe_serialization", True):
        raise InvalidInput("safe_serialization is False; expected True: pyflow writes no pickle")
