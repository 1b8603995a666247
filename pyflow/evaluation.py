"""`pyflow eval`: how far an engine's pictures are from real ones, at each step count, as JSON and sheets of pictures.

The JSON is written after each row, and rows of the same request that stand in it are kept: a stopped run goes on.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import similarity
from .artefact import json_bytes, read_json, write_file
from .errors import BackendUnavailable, InvalidInput
from .eval_rows import Grid, Plan, asked_labels, labels_in_turn, row_of
from .extractors import Extractor, open_extractor
from .pictures import GAP, grid_of
from .references import Reference, figures, reference
from .sampler import SEARCHED, Flow, count
from .sources import open_source
from .timing import machine
from .training import logs, perceptual
from .training.data import Dataset, class_names, load_dataset
from .trajectories import straightness

FORMAT, KIND = 1, "eval"
COMPARED, FOLLOWED = 100, 64  # pictures beside those of another flow, and trajectories
SHEET_CLASSES, SHEET_SEEDS, SHEET_SCALE = 10, 8, 2
SHEET = {"gap": GAP, "scale": SHEET_SCALE}
LOGGED = 400  # lines of a training curve
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
    def of(
        cls, source: Path, setting: Setting, plans: Sequence[Plan], *, threads: int = 0, device: str = "cpu"
    ) -> "Subject":
        flow = open_source(source, threads, device)
        if threads:
            torch.set_num_threads(threads)
        data, other = load_dataset(setting.data), None
        refuse_misfit(flow, data)
        for plan in plans:
            refuse_plan(flow, plan)
        if setting.against:
            other = open_source(setting.against.source, threads, device)
            refuse_misfit(other, data)
            refuse_plan(other, setting.against.plan)
        extractor = open_extractor(setting.features, data, "cuda" if device != "cpu" else "cpu")
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


def evaluate(
    source: Path,
    steps: Sequence[int],
    setting: Setting,
    out: Path,
    *,
    name: str | None = None,
    command: str = "",
    threads: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a row for each step count that `out` does not hold yet; returns all that it then holds."""
    refuse_unwritable(out)
    subject = Subject.of(source, setting, [setting.plan(asked) for asked in steps], threads=threads, device=device)
    flow = subject.flow
    a_class, size = setting.num_samples * setting.seeds // max(1, subject.data.classes), subject.extractor.size
    if subject.data.classes > 1 and a_class <= size:
        tqdm.write(f"no distance a class: {a_class} pictures of each; a covariance of {size} features needs {size + 1}")
    facts = {"command": command, "threads": threads, "device": device, **machine()}
    request = _request(subject, setting, facts)
    kept = _kept(out, request)
    name = name or kept.get("name") or out.stem
    if kept and kept.get("name") != name:
        write_file(out, json_bytes(kept | {"name": name}))
    record = {**_head(source, subject, setting, name), "request": request, "facts": facts}
    rows = _rows(kept)
    record["floor"] = _floor(subject, setting)
    others = None
    for asked in steps:
        if asked in rows:
            tqdm.write(f"{asked} steps: measured already")
            continue
        plan = setting.plan(asked)
        rows[asked] = _measured(subject, plan, setting) | {fact: facts[fact] for fact in ("commit", "date")}
        rows[asked]["straightness"] = _straightness(flow, plan)
        if subject.other and setting.against:
            others = _compared(subject.other, setting.against.plan) if others is None else others
            rows[asked]["against"] = _beside(flow, plan, others, setting.against)
        rows[asked] |= {"sheet": f"{out.stem}-steps-{asked}.png", **SHEET, "cell": list(subject.data.shape[1:])}
        write_file(out.with_name(rows[asked]["sheet"]), sheet(flow, plan))
        rows = rows | _rows(_kept(out, request)) | {asked: rows[asked]}  # another process may have added some
        write_file(out, json_bytes(record | {"rows": [_present(rows[done]) for done in sorted(rows)]}))
    return record | {"rows": [rows[done] for done in sorted(rows)]}


def refuse_unwritable(out: Path) -> None:
    if out.suffix != ".json" or out.is_dir() or not out.parent.is_dir():
        raise InvalidInput(f"--out is {str(out)!r}; expected a name that ends in .json, in a folder that is there")


# ---- what stands in the file beside the rows
def _request(subject: Subject, setting: Setting, facts: dict[str, Any]) -> dict[str, Any]:
    """What all rows of a file have in common: the machine too, as their times stand beside each other."""
    flow = subject.flow
    request = {
        **{field: getattr(setting, field) for field in ("num_samples", "guidance", "grid", "batch")},
        **_told(subject, setting),
        "threads": facts["threads"] or facts["cores"],
        **{fact: facts[fact] for fact in ("device", "processor")},
        "backend": flow.backend,
        "subject": flow.identity,
        "reference": subject.real.sha256,
        "extractor": subject.extractor.identity,
    }
    if setting.grid == SEARCHED:
        request["grids"] = flow.spec.grids
    if subject.other and setting.against:
        request["against"] = [subject.other.identity, setting.against.steps, setting.against.guidance]
    found: dict[str, Any] = json.loads(json.dumps(request))
    return found


def _told(subject: Subject, setting: Setting) -> dict[str, Any]:
    return {"solver": setting.solver or subject.flow.spec.solver, "seeds": list(range(setting.seeds))}


def _head(source: Path, subject: Subject, setting: Setting, name: str) -> dict[str, Any]:
    flow, provenance = subject.flow, subject.flow.spec.provenance
    return {
        "format": FORMAT,
        "kind": KIND,
        "name": name,
        "method": str(provenance.get("objective", provenance.get("name", "network"))),
        "subject": {"source": source.resolve().name, "backend": flow.backend, "identity": flow.identity},
        "data": subject.data.name,
        "features": subject.extractor.name,
        **{field: getattr(setting, field) for field in ("num_samples", "guidance")},
        **_told(subject, setting),
        "interval": "95%, Student's t over the seeds" if setting.seeds > 1 else "none, of one seed",
        "reference": {"count": subject.real.whole.count, "sha256": subject.real.sha256},
        "training": training_curve(source),
        "classes": class_names(setting.data, subject.data.classes),
    }


def _kept(out: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What `out` holds already; a file of another request is refused."""
    if not out.exists():
        return {}
    found = read_json(out)
    if not _is_evaluation(found):
        raise InvalidInput(f"{out} is no evaluation that pyflow wrote; expected none, or one: name another --out")
    before = found["request"]
    changed = sorted(field for field in {**before, **now} if before.get(field) != now.get(field))
    if changed:
        field = changed[0]
        raise InvalidInput(
            f"{out} holds another evaluation, whose {field} is {_short(before.get(field))}, not "
            f"{_short(now.get(field))}; name another --out, or remove it"
        )
    return dict(found)


def _is_evaluation(found: Any) -> bool:
    if not isinstance(found, dict) or (found.get("format"), found.get("kind")) != (FORMAT, KIND):
        return False
    rows, numbers = found.get("rows"), (int, float)
    return (
        isinstance(found.get("request"), dict)
        and isinstance(rows, list)
        and all(isinstance(row, dict) and isinstance(row.get("steps"), int) for row in rows)
        and all(isinstance(row.get("ms_per_image"), numbers) for row in rows)
    )


def _rows(kept: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {row["steps"]: row for row in kept.get("rows", [])}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]}…"


def _floor(subject: Subject, setting: Setting) -> dict[str, Any]:
    """As many held-out pictures as are sampled, or all: the distance that real pictures have from real ones."""
    try:
        held_out = load_dataset(setting.data, "test")
        chosen = np.linspace(0, len(held_out.images) - 1, min(setting.num_samples, len(held_out.images))).astype(int)
        some = Dataset(held_out.name, held_out.images[chosen], held_out.labels[chosen], held_out.classes)
        look = reference(some, "test", subject.extractor)
    except InvalidInput as error:
        tqdm.write(f"no floor of held-out pictures: {error}")
        return {}
    read = {} if look.accuracy is None else {"label_accuracy": look.accuracy}
    return {**figures(look, subject.real), **read, "count": look.whole.count}


def training_curve(source: Path) -> list[dict[str, Any]]:
    """The steps and losses of the run whose checkpoint this is, or whose engine lies beside it; not every line."""
    for folder in [source] + [source.with_suffix("")] * (source.suffix == ".engine"):
        log = logs.folder_of(folder) / logs.LINES
        if log.is_file():
            losses = [{"step": line["step"], "loss": line["loss"]} for line in logs.logged(log) if _has_loss(line)]
            return losses[:: -(-len(losses) // LOGGED) or 1]
    return []


def _has_loss(line: dict[str, Any]) -> bool:
    """Not where it was no finite number, which the log holds as null."""
    return isinstance(line.get("loss"), (int, float)) and math.isfinite(line["loss"])


# ---- what a row has beside its distances
def _measured(subject: Subject, plan: Plan, setting: Setting) -> dict[str, Any]:
    total = setting.num_samples * setting.seeds
    with tqdm(total=total, desc=f"{plan.steps} steps", unit="picture") as bar:
        return row_of(
            subject.flow,
            plan,
            subject.extractor,
            subject.real,
            num_samples=setting.num_samples,
            seeds=range(setting.seeds),
            batch=setting.batch,
            shown=bar.update,
        )


def _straightness(flow: Flow, plan: Plan) -> float | None:
    if plan.steps == 1:
        return None
    labels = labels_in_turn(flow, 0, FOLLOWED) if flow.spec.network.classes else None
    rows = flow.plan(plan.steps, plan.solver, plan.grid)
    return straightness(flow, rows, FOLLOWED, label=labels, guidance=plan.guidance)


def _compared(flow: Flow, plan: Plan) -> np.ndarray:
    labels = asked_labels(flow, labels_in_turn(flow, 0, COMPARED))
    return np.asarray(flow.sample(COMPARED, label=labels, **plan.asked()).images)


def _beside(flow: Flow, plan: Plan, others: np.ndarray, against: Against) -> dict[str, Any]:
    made = _compared(flow, plan)
    name = f"{against.source.resolve().name}, {against.steps} steps"
    found: dict[str, Any] = {"name": name, "ssim": float(similarity.ssim(others, made).mean())}
    both = (torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1 for images in (others, made))
    try:
        with torch.inference_mode():
            found["lpips"] = float(perceptual.lpips_distance(*both).mean())
    except BackendUnavailable:  # its package or its weights are not here, and the figure is absent
        return found
    return found


def _present(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def sheet(flow: Flow, plan: Plan) -> bytes:
    """A PNG: a row a class, a column a seed; the same noise and labels for every flow and step count."""
    classes = min(flow.spec.network.classes, SHEET_CLASSES) or SHEET_CLASSES
    labels = asked_labels(flow, np.arange(classes))
    sampled = partial(flow.sample, classes, label=labels, **plan.asked())
    columns = np.stack([sampled(seed=seed).images for seed in range(SHEET_SEEDS)], axis=1)
    buffer = io.BytesIO()
    grid_of(columns.reshape(-1, *columns.shape[2:]), SHEET_SEEDS, SHEET_SCALE).save(buffer, "PNG")
    return buffer.getvalue()
