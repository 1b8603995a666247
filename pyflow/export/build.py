"""What is ordered of an export, what a builder gives back, and the graphs that an order asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pyflow import core
from pyflow.engines.manifest import DENOISER, PRECISIONS, SAMPLER, STEP, WHATS, PlanRecord
from pyflow.errors import InvalidInput
from pyflow.sampler import STEPS_LIMIT
from pyflow.spec import Spec

from .shapes import DTYPES, Denoiser, Sampler, Step

Shape = Denoiser | Step | Sampler
BATCH_LIMIT, GUIDANCE_LIMIT = 2**20, 100
INT8 = "int8"  # quantized from the float32 graph


@dataclass(frozen=True)
class Order:
    """`steps`, `guidance` and `grid` are of whole samplers; the other shapes take theirs at run time."""

    what: str = DENOISER
    precision: str = "fp32"
    steps: tuple[int, ...] = (1, 2, 4)
    guidance: float = 1.0
    solver: str | None = None
    grid: str = "uniform"
    device: str = "cpu"

    def check(self, spec: Spec) -> None:
        choices = {"what": WHATS, "precision": PRECISIONS, "grid": core.GRIDS, "device": ("cpu", "cuda")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InvalidInput(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.solver is not None and self.solver not in core.SOLVERS:
            raise InvalidInput(f"solver is {self.solver!r}; expected one of {', '.join(core.SOLVERS)}")
        if self.what != DENOISER and spec.network.sees_mask:
            raise InvalidInput(
                f"what is {self.what!r} and the network sees the mask; expected {DENOISER}: a {self.what} has no "
                "input for the kept picture that the network is told"
            )
        counts = set(self.steps)
        if not counts or min(counts) < 1 or max(counts) > STEPS_LIMIT or len(counts) != len(self.steps):
            raise InvalidInput(f"steps is {self.steps}; expected step counts of 1 to {STEPS_LIMIT}, each once")
        if not 0 <= self.guidance <= GUIDANCE_LIMIT:
            raise InvalidInput(f"guidance is {self.guidance}; expected a number from 0 to {GUIDANCE_LIMIT}, 1 for none")
        if self.guidance != 1.0 and not spec.null_label:
            raise InvalidInput(f"guidance is {self.guidance}; expected 1, this network knows no null label")
        if self.what != SAMPLER:
            return
        for record in self.plans(spec):
            if any(row.n for row in record.plan(spec)):
                raise InvalidInput(
                    f"solver is {record.solver!r}, which draws noise in every row; expected one that does not: a whole "
                    "sampler takes noise at its start only"
                )

    def plans(self, spec: Spec) -> tuple[PlanRecord, ...]:
        """The plans of whole samplers; none for the other shapes."""
        if self.what != SAMPLER:
            return ()
        solver = self.solver or spec.solver
        grids = {steps: tuple(core.GRIDS[self.grid](steps)) for steps in self.steps}
        return tuple(PlanRecord(f"sampler-{steps}", solver, grid, self.guidance) for steps, grid in grids.items())


@dataclass(frozen=True)
class Built:
    """The files of an engine, what they need of the machine, and what made them.

    `more_precise` builds what is proved instead, where these files differ by more than the bound.
    """

    files: dict[str, bytes]
    requires: dict[str, Any] = field(default_factory=dict)
    packages: Sequence[str] = ("torch",)
    more_precise: Callable[[], "Built"] | None = None


def shapes_of(model: nn.Module, spec: Spec, order: Order) -> dict[str, Shape]:
    """The modules to export, by the names of their graphs."""
    denoiser = Denoiser(model, spec, DTYPES["fp32" if order.precision == INT8 else order.precision])
    if order.what == DENOISER:
        return {"denoiser": denoiser}
    if order.what == STEP:
        guided = {"step-guided": Step(denoiser, spec, guided=True)} if spec.null_label else {}
        return {"step": Step(denoiser, spec, guided=False), **guided}
    return {record.graph: Sampler(denoiser, spec, record.plan(spec), record.guidance) for record in order.plans(spec)}
