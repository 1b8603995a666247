"""What a recipe is: a full training setting, as frozen dataclasses that refuse what cannot train."""

import math
from dataclasses import dataclass
from typing import Any

from pyflow.core import PATHS, PREDICTIONS, SOLVERS
from pyflow.errors import InvalidInput
from pyflow.records import refuse_other_types
from pyflow.spec import Network

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

    times: str = "uniform"  # cfm, reflow, consistency, flow maps: one of TIMES
    jump: float = 0.5  # reflow: the share of the batch at t=0
    huber: float = 0.0  # reflow, grid: the pseudo-Huber loss's bend, in root mean squares an element; 0 is the square
    lpips: float = 0.0  # reflow, grid: the weight of LPIPS beside it
    grid: int = 4  # grid: its steps
    diagonal: float = 0.75  # flow maps: the share of the batch at s=t
    guidance: float = 1.0  # MeanFlow: guidance inside the target; with a guided network, the largest that it is told
    adaptive: float = 1.0  # MeanFlow: the power of the adaptive weight; 0 is none
    learned_weight: bool = False  # the trainer: e^-w L + w, with w(s, t) learned
    gap: float = 0.02  # consistency: between the two times that are compared
    pooled: bool = False  # cfm, ddpm, flow maps, MeanFlow: targets are means over the batch; for points in the plane
    masked: float = 0.5  # cfm, ddpm of a network that sees the mask: the share of the samples with a hole
    region: float = 0.3  # ... and the pairs' objectives too: the weight of the hole alone, the whole having the rest

    def __post_init__(self) -> None:
        refuse_other_types(self)
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
            masked=(0 <= self.masked <= 1, "0 to 1, a share of the samples"),
            region=(0 <= self.region <= 1, "0 to 1, a share of the loss"),
        )


@dataclass(frozen=True)
class Recipe:
    """A full training setting. `half_lives` of the averaged weights are shares of the run: 3-5% suits short ones.

    The first of them is what is published as the checkpoint's weights.
    """

    name: str
    objective: str
    data: str
    network: Network
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
        refuse_other_types(self)
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
                len({*self.half_lives}) == len(self.half_lives) > 0
                and all(0 <= share < math.inf for share in self.half_lives),
                "one or more shares of the run, each 0 or more and no two the same",
            ),
            label_dropout=(0 <= self.label_dropout <= 1, "0 to 1, a share of the labels"),
            clip=(0 < self.clip < math.inf, "a number above 0"),
            accumulate=(
                self.accumulate >= 1 and self.batch % self.accumulate == 0,
                f"1 or more, a divisor of batch={self.batch}",
            ),
            precision=(self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            seed=(0 <= self.seed < 2**63, "0 to 2**63 - 1"),
        )
