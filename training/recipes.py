"""Recipes: a full training setting each, as a function that returns a frozen dataclass."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from pyflow.core import PATHS, PREDICTIONS, SOLVERS
from pyflow.errors import InvalidInput
from pyflow.spec import MLP, Network, UNet

TIMES = ("uniform", "u-shaped", "logit-normal")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("fp32", "bf16")


def _expect_all(setting: Any, **rules: tuple[bool, str]) -> None:
    for name, (fits, expected) in rules.items():
        if not fits:
            raise InvalidInput(f"{name} is {getattr(setting, name)!r}; expected {expected}")


@dataclass(frozen=True)
class Options:
    """The settings of the objectives themselves; each objective says which of them it reads."""

    times: str = "uniform"  # how t is drawn where one time is: uniform, u-shaped or logit-normal
    jump: float = 0.5  # reflow: the share of the batch at t=0
    huber: float = 0.0  # the pseudo-Huber loss's bend, in root mean squares an element; 0 is the square
    lpips: float = 0.0  # the weight of LPIPS beside it
    grid: int = 4  # k-step distillation: the steps of the grid
    diagonal: float = 0.75  # flow maps: the share of the batch at s=t
    guidance: float = 1.0  # MeanFlow: guidance inside the target; with a guided network, the largest that it is told
    adaptive: float = 1.0  # MeanFlow: the power of the adaptive weight; 0 is none
    learned_weight: bool = False  # e^-w L + w, with w(s, t) learned
    gap: float = 0.02  # consistency: between the two times that are compared

    def __post_init__(self) -> None:
        _expect_all(
            self,
            times=(self.times in TIMES, f"one of {', '.join(TIMES)}"),
            jump=(0 <= self.jump <= 1, "0 to 1, a share of the batch"),
            huber=(0 <= self.huber < math.inf, "0 or more"),
            lpips=(0 <= self.lpips < math.inf, "0 or more"),
            grid=(self.grid >= 1, "1 or more steps"),
            diagonal=(0 < self.diagonal <= 1, "above 0 and at most 1, a share of the batch"),
            guidance=(1 <= self.guidance < math.inf, "1 (none) or more"),
            adaptive=(0 <= self.adaptive < math.inf, "0 or more"),
            gap=(0 < self.gap < 1, "above 0 and below 1"),
        )


@dataclass(frozen=True)
class Recipe:
    """A full training setting. `half_lives` of the averaged weights are shares of the run: 3-5% suits short ones.

    The first of them is what is published as the checkpoint's weights.
    """

    name: str
    objective: str
    data: str
    network: Network | None  # none: the teacher's
    steps: int
    batch: int
    learning_rate: float
    path: str = "linear"
    prediction: str = "velocity"
    solver: str = "euler"
    options: Options = Options()
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "linear"
    warmup: float = 0.05
    half_lives: tuple[float, ...] = (0.04,)
    label_dropout: float = 0.1
    flip: bool = False
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _expect_all(
            self,
            steps=(self.steps >= 1, "1 or more"),
            batch=(self.batch >= 1, "1 or more"),
            learning_rate=(0 < self.learning_rate < math.inf, "a number above 0"),
            path=(self.path in PATHS, f"one of {', '.join(PATHS)}"),
            prediction=(self.prediction in PREDICTIONS, f"one of {', '.join(PREDICTIONS)}"),
            solver=(self.solver in SOLVERS, f"one of {', '.join(SOLVERS)}"),
            optimizer=(self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            weight_decay=(0 <= self.weight_decay < math.inf, "0 or more"),
            schedule=(self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            warmup=(0 <= self.warmup <= 1, "0 to 1, a share of the run"),
            half_lives=(
                len(self.half_lives) > 0 and all(0 <= share < math.inf for share in self.half_lives),
                "one or more shares of the run, each 0 or more",
            ),
            label_dropout=(0 <= self.label_dropout <= 1, "0 to 1, a share of the labels"),
            clip=(self.clip > 0, "a number above 0"),
            accumulate=(
                self.accumulate >= 1 and self.batch % self.accumulate == 0,
                f"1 or more, a divisor of batch={self.batch}",
            ),
            precision=(self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            seed=(0 <= self.seed < 2**63, "0 to 2**63 - 1"),
        )


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
    return Recipe("reflow", "reflow", data, None, steps, batch, learning_rate=1e-3, label_dropout=0.0)


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
