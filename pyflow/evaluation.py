"""`pyflow eval`: how far an engine's pictures are from real ones, at each step count, as JSON and sheets of pictures.

The JSON is written after each row, and rows of the same request that stand in it are kept, as are the finished seeds of
a row that is not: a stopped run goes on.
"""

import io
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import similarity
from .artefact import json_bytes, read_json, sha256, write_file
from .errors import BackendUnavailable, InvalidInput
from .eval_rows import Plan, a_class, asked_labels, labels_in_turn, row_of
from .eval_seeds import Store
from .eval_setting import Against, Setting, Subject, refuse_unwritable
from .pictures import GAP, grid_of
from .references import figures, reference
from .sampler import SEARCHED, Flow
from .timing import machine
from .training import logs, perceptual
from .training.data import Dataset, class_names, load_dataset
from .trajectories import no_trajectory, straightness

FORMAT, KIND = 1, "eval"
COMPARED, FOLLOWED = 100, 64  # pictures beside those of another flow, and trajectories
SHEET_CLASSES, SHEET_SEEDS, SHEET_SCALE = 10, 8, 2
SHEET = {"gap": GAP, "scale": SHEET_SCALE}
LOGGED = 400  # lines of a training curve
T_OVER_SEEDS = "95%, Student's t over the seeds"
JACKKNIFE = "95%, jackknife: the pictures of all seeds together, without each seed in turn; Student's t over the seeds"


def evaluate(
    source: Path, steps: Sequence[int], setting: Setting, out: Path, *, name: str | None = None, command: str = ""
) -> dict[str, Any]:
    """Measure a row for each step count that `out` does not hold yet; returns all that it then holds."""
    refuse_unwritable(out)
    subject = Subject.of(source, setting, [setting.plan(asked) for asked in steps])
    flow = subject.flow
    facts = {"command": command, "threads": setting.threads, "device": setting.device, **machine()}
    request = _request(subject, setting, facts)
    kept = _kept(out, request)
    name = name or kept.get("name") or out.stem
    if kept and kept.get("name") != name:
        write_file(out, json_bytes(kept | {"name": name}))
    record = {**_head(source, subject, setting, name), "request": request, "facts": facts}
    if subject.data.classes > 1 and record["interval_by_class"] != JACKKNIFE:
        tqdm.write(f"intervals by class: {record['interval_by_class']}")
    rows = _rows(kept)
    record["floor"] = _floor(subject, setting)
    others = None
    for asked in steps:
        if asked in rows:
            tqdm.write(f"{asked} steps: measured already")
            continue
        plan = setting.plan(asked)
        store = Store(out.with_name(f"{out.stem}-steps-{asked}.seeds"), sha256(json_bytes([request, asked])))
        rows[asked] = _measured(subject, plan, setting, store) | {fact: facts[fact] for fact in ("commit", "date")}
        rows[asked] |= _straightness(flow, plan)
        if subject.other and setting.against:
            others = _compared(subject.other, setting.against.plan) if others is None else others
            rows[asked]["against"] = _beside(flow, plan, others, setting.against)
        rows[asked] |= {"sheet": f"{out.stem}-steps-{asked}.png", **SHEET, "cell": list(subject.data.shape[1:])}
        write_file(out.with_name(rows[asked]["sheet"]), sheet(flow, plan))
        rows = rows | _rows(_kept(out, request)) | {asked: rows[asked]}  # another process may have added some
        write_file(out, json_bytes(record | {"rows": [rows[done] for done in sorted(rows)]}))
        store.remove(range(setting.seeds))
    return record | {"rows": [rows[done] for done in sorted(rows)]}


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
        "interval_by_class": JACKKNIFE,
    }
    if setting.grid == SEARCHED:
        request["grids"] = flow.spec.grids
    if subject.other and setting.against:
        request["against"] = [subject.other.identity, setting.against.steps, setting.against.guidance]
    found: dict[str, Any] = json.loads(json.dumps(request))
    return found


def _told(subject: Subject, setting: Setting) -> dict[str, Any]:
    return {
        "solver": setting.solver or subject.flow.spec.solver,
        "seeds": list(range(setting.seeds)),
    }


def _interval_by_class(subject: Subject, setting: Setting) -> str:
    """How it is made, or why there is none."""
    each, size = a_class(setting.num_samples, subject.flow), subject.extractor.size
    if setting.seeds == 1 or not each:
        return "none, of one seed" if each else "none, without classes"
    for seeds, told in ((setting.seeds, "distance, of all seeds"), (setting.seeds - 1, "interval, without a seed")):
        if each * seeds <= size:
            return f"no {told}: {each * seeds} pictures a class; a covariance of {size} features needs {size + 1}"
    return JACKKNIFE


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
        "interval": T_OVER_SEEDS if setting.seeds > 1 else "none, of one seed",
        "interval_by_class": _interval_by_class(subject, setting),
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
def _measured(subject: Subject, plan: Plan, setting: Setting, store: Store) -> dict[str, Any]:
    seeds, each = range(setting.seeds), setting.num_samples
    there = store.count(seeds)
    with tqdm(total=each * len(seeds), initial=each * there, desc=f"{plan.steps} steps", unit="picture") as bar:
        return row_of(
            subject.flow,
            plan,
            subject.extractor,
            subject.real,
            num_samples=each,
            seeds=seeds,
            batch=setting.batch,
            shown=bar.update,
            kept=store.asking,
        )


def _straightness(flow: Flow, plan: Plan) -> dict[str, Any]:
    """The figure, or why there is none."""
    rows = flow.plan(plan.steps, plan.solver, plan.grid)
    absent = "one step is a straight line whatever the network" if plan.steps == 1 else no_trajectory(flow, rows)
    if absent:
        return {"no_straightness": absent}
    labels = labels_in_turn(flow, 0, FOLLOWED) if flow.spec.network.classes else None
    return {"straightness": straightness(flow, rows, FOLLOWED, label=labels, guidance=plan.guidance)}


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


def sheet(flow: Flow, plan: Plan) -> bytes:
    """A PNG: a row a class, a column a seed; the same noise and labels for every flow and step count."""
    classes = min(flow.spec.network.classes, SHEET_CLASSES) or SHEET_CLASSES
    labels = asked_labels(flow, np.arange(classes))
    sampled = partial(flow.sample, classes, label=labels, **plan.asked())
    columns = np.stack([sampled(seed=seed).images for seed in range(SHEET_SEEDS)], axis=1)
    buffer = io.BytesIO()
    grid_of(columns.reshape(-1, *columns.shape[2:]), SHEET_SEEDS, SHEET_SCALE).save(buffer, "PNG")
    return buffer.getvalue()
