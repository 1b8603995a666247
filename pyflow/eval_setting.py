"""What an evaluation asks, of what, and judged by whom: each misfit is refused before anything is sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import InvalidInput
from .eval_rows import Grid, Plan
from .extractors import Extractor, open_extractor
from .references import Reference, reference
from .sampler import Flow, count
from .sources import open_source
from .training.data import Dataset, load_dataset

SAMPLES_LIMIT, SEEDS_LIMIT = 10_000_000, 1000


@dataclass(frozen=True)
class Against:
    """Whose pictures of the same noise are compared."""

    source: Path
    steps: int = 50
    guidance: float = 1.0

    @property
    def plan(self) -> Plan:
        return Plan(self.steps, self.guidance)


@dataclass(frozen=True)
class Setting:
    """What every row of an evaluation is measured with."""

    data: str
    features: str
    num_samples: int = 1000
    seeds: int = 3
    guidance: float = 1.0
    solver: str | None = None
    grid: Grid = "uniform"
    batch: int = 100
    against: Against | None = None
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        count("num_samples", self.num_samples, 1, SAMPLES_LIMIT)
        count("seeds", self.seeds, 1, SEEDS_LIMIT)
        count("batch", self.batch, 1, 65_536)

    def plan(self, steps: int) -> Plan:
        return Plan(steps, self.guidance, self.solver, self.grid)


@dataclass(frozen=True)
class Subject:
    """A flow with what judges it, and whom it is compared with; every misfit is refused before anything is sampled."""

    flow: Flow
    extractor: Extractor
    data: Dataset
    real: Reference
    other: Flow | None

    @classmethod
    def of(cls, source: Path, setting: Setting, plans: Sequence[Plan]) -> "Subject":
        flow = open_source(source, setting.threads, setting.device)
        if setting.threads:
            torch.set_num_threads(setting.threads)
        data, other = load_dataset(setting.data), None
        refuse_misfit(flow, data)
        for plan in plans:
            refuse_plan(flow, plan)
        if setting.against:
            other = open_source(setting.against.source, setting.threads, setting.device)
            refuse_misfit(other, data)
            refuse_plan(other, setting.against.plan)
        extractor = open_extractor(setting.features, data, "cuda" if setting.device != "cpu" else "cpu")
        if setting.num_samples <= extractor.size:
            raise InvalidInput(
                f"num_samples is {setting.num_samples}; a covariance of {extractor.size} features needs "
                f"{extractor.size + 1} pictures or more"
            )
        for plan in plans:
            flow.warm(**plan.asked())  # an engine of whole samplers refuses other plans only now
        if other and setting.against:
            other.warm(**setting.against.plan.asked())
        return cls(flow, extractor, data, reference(data, "train", extractor), other)


def refuse_misfit(flow: Flow, data: Dataset) -> None:
    network = flow.spec.network
    if network.shape != data.shape or network.classes != data.classes:
        raise InvalidInput(
            f"the network makes {network.shape} of {network.classes} classes, the pictures of {data.name} are "
            f"{data.shape} of {data.classes}: name the --data that it learnt"
        )


def refuse_plan(flow: Flow, plan: Plan) -> None:
    flow.plan(plan.steps, plan.solver, plan.grid)
    flow.check_guidance(plan.guidance, 0 if flow.spec.network.classes else None)


def refuse_unwritable(out: Path) -> None:
    if out.suffix != ".json" or out.is_dir() or not out.parent.is_dir():
        raise InvalidInput(f"--out is {str(out)!r}; expected a name that ends in .json, in a folder that is there")
