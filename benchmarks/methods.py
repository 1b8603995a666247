"""Every method on one data set, end to end at a reduced size: seconds, loss curve, distance and pictures by step count.

python benchmarks/methods.py --data FOLDER --teacher CHECKPOINT --judge FOLDER [--steps 150] [--batch 32] [--out FOLDER]
  [--own METHOD FIELD=VALUE ...] ...

All but ddpm start from the teacher's weights; students learn from its pairs. `--own` gives one method fields of its
recipe that the others do not have. A run that is finished is reused.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyflow.training.data import load_dataset
from pyflow.training.fields import typed
from pyflow.training.logs import LINES, folder_of
from pyflow.training.recipes import STUDENTS, TEACHERS
from pyflow.training.watch import FIXED_LOSS

from pyflow import checkpoint, commands, load
from pyflow.artefact import read_json, write_file
from pyflow.demo import GUIDANCE
from pyflow.errors import PyflowError
from pyflow.export.build import Order
from pyflow.pictures import grid_of
from pyflow.quality import PICTURES, Judge
from pyflow.timing import machine

# A velocity is the noise turned round: from the teacher's weights, whose first gradients Adam remembers, the loss of
# ddpm stood at 0.99 after 100 steps (rates 3e-4 and 1e-3), and at 0.06 from random ones.
FROM_NOTHING = ("ddpm",)
STEPS, SHOWN, LOOKS = (1, 4, 16), 8, 6
CURVES: dict[str, dict[str, Any]] = {
    "loss": {"color": "#ced4da"},
    FIXED_LOSS: {"color": "#d9480f", "marker": ".", "zorder": 3},
}
CONSISTENT = "semigroup-error"  # of two times: what a flow map's loss hides under the part that no network can learn


@dataclass(frozen=True)
class Setting:
    data: str
    teacher: Path
    runs: Path
    pairs: int
    changes: dict[str, Any]  # of every recipe
    own: dict[str, dict[str, Any]]  # ... and of a single one

    def train(self, method: str) -> Path:
        """The checkpoint of a method, trained now or before; its processor's seconds lie beside it."""
        folder, began = self.runs / method, time.process_time()
        changes = self.changes | self.own.get(method, {})
        changes["watch"] = max(1, changes["steps"] // LOOKS)
        if method in STUDENTS:
            made = commands.distil(method, self.teacher, self.runs / "pairs", folder, **changes)
        else:
            start = None if method in FROM_NOTHING else self.teacher
            made = commands.train_teacher(method, self.data, folder, start=start, **changes)
        if made:
            seconds = {"seconds": round(time.process_time() - began, 1)}
            write_file(folder_of(folder) / "seconds.json", json.dumps(seconds).encode())
        return folder

    def make_pairs(self) -> None:
        engine = self.runs / "teacher.engine"
        commands.export_engine(self.teacher, engine, "native", Order())
        plan: dict[str, Any] = {"steps": 16, "solver": "ab2", "guidance": GUIDANCE, "seed": 2**31}
        commands.make_pairs(engine, self.runs / "pairs", count=self.pairs, **plan)


def row(folder: Path, judge: Judge, steps: Sequence[int]) -> tuple[dict[str, Any], list[dict[str, float]], np.ndarray]:
    """The record of a method, its log, and its first pictures at each step count."""
    spec = checkpoint.load_spec(folder)
    guidance = GUIDANCE if spec.null_label else 1.0
    lines = [json.loads(line) for line in (folder_of(folder) / LINES).read_text().splitlines()]
    flow, found, shown = load(folder), {}, []
    for count in steps:
        distance, accuracy, images = judge.of_flow(flow, count, guidance)
        found[str(count)] = {"distance": round(distance, 4), "label_accuracy": round(accuracy, 4)}
        shown.append(images[:SHOWN])
    losses = logged(lines, FIXED_LOSS)[1] or logged(lines, "loss")[1]  # older logs have those of training alone
    record = {
        "method": folder.name,
        "seconds": read_json(folder_of(folder) / "seconds.json")["seconds"],
        "training": spec.provenance["steps"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "guidance": guidance,
        "steps": found,
        "provenance": spec.provenance,
    }
    return record, lines, np.concatenate(shown)


def table(rows: Sequence[dict[str, Any]]) -> str:
    steps = list(rows[0]["steps"])
    head = f"{'method':<18}{'steps':>6}{'seconds':>8}{'loss':>18}"
    head += "".join(f"{f'distance at {count}':>15}" for count in steps)
    lines = [
        f"{each['method']:<18}{each['training']:6}{each['seconds']:8.0f}"
        + f"{each['first_loss']:9.4f} {each['last_loss']:8.4f}"
        + "".join(f"{cell['distance']:15.3f}" for cell in each["steps"].values())
        for each in rows
    ]
    return "\n".join([head, *lines])


def logged(lines: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    told = [line for line in lines if line.get(name) is not None]
    return [line["step"] for line in told], [line[name] for line in told]


def plot(curves: dict[str, list[dict[str, float]]], sheets: dict[str, np.ndarray], path: Path, facts: str) -> None:
    """A row a method: its loss as it was trained and on the same samples, and pictures, a line a step count."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = {"width_ratios": (1, 2)}
    figure, axes = pyplot.subplots(len(curves), 2, figsize=(9, 2 * len(curves)), gridspec_kw=size, squeeze=False)
    for (method, lines), (curve, pictures) in zip(curves.items(), axes):
        for name, style in CURVES.items():
            curve.plot(*logged(lines, name), **style)
        if any(CONSISTENT in line for line in lines):
            beside = curve.twinx()
            beside.plot(*logged(lines, CONSISTENT), color="#1c7ed6", marker=".")
            beside.set_ylim(bottom=0)
            beside.spines[["top"]].set_visible(False)
        curve.set(ylabel=method)
        curve.spines[["top", "right"]].set_visible(False)
        sheet = np.asarray(grid_of(sheets[method], columns=SHOWN))
        pictures.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        height = sheet.shape[0] / len(STEPS)
        pictures.set_yticks([(place + 0.5) * height for place in range(len(STEPS))], STEPS)
        pictures.set(xticks=[])
    told = "loss by step: as trained (grey), on the same samples\n(orange); the jumps' semigroup error (blue, right)"
    axes[0, 0].set_title(told, fontsize=8)
    axes[0, 1].set_title("pictures at " + ", ".join(map(str, STEPS)) + " network calls")
    figure.tight_layout()
    figure.text(0, 0, facts, fontsize=6, va="top", wrap=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def own_fields(said: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What `--own` gives each method: METHOD FIELD=VALUE ..."""
    words = {"true": True, "false": False}
    return {
        method: {
            field: typed(field, words.get(value, value)) for field, _, value in (each.partition("=") for each in fields)
        }
        for method, *fields in said
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--teacher", type=Path, required=True, help="a cfm checkpoint")
    parser.add_argument("--judge", type=Path, required=True, help="a classifier's folder")
    parser.add_argument("--methods", nargs="+", default=[*filter("cfm".__ne__, TEACHERS), *STUDENTS])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--own", nargs="+", action="append", default=[], metavar=("METHOD", "FIELD=VALUE"))
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = {"steps": arguments.steps, "batch": arguments.batch}
    command = "make bench-methods" + ("" if arguments.data == "digits" else f" CIFAR10={Path(arguments.data).name}")
    facts = {"command": command, "threads": arguments.threads, **machine()}
    rows, curves, sheets = [], {}, {}
    try:
        own = own_fields(arguments.own)
        setting = Setting(arguments.data, arguments.teacher, arguments.runs, arguments.pairs, changes, own)
        judge = Judge.of(arguments.judge, arguments.data)
        setting.make_pairs()
        for method in arguments.methods:
            record, curves[method], sheets[method] = row(setting.train(method), judge, STEPS)
            rows.append(record)
            print(table([record]), flush=True)
    except PyflowError as error:
        raise SystemExit(f"methods.py: {error}") from None
    print("\n" + table(rows))
    named = load_dataset(arguments.data).name
    protocol = {"data": named, "features": f"{named} classifier, {judge.real.shape[1]} features", "pictures": PICTURES}
    kept = {"facts": facts, **protocol, "distance_of_held_out_pictures": judge.floor, "methods": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out / f"methods-{named}"
    out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    summary = ", ".join(f"{name} {value}" for name, value in facts.items())
    plot(curves, sheets, out.with_suffix(".png"), summary)
    print(f"\n{summary}\nkept in {out}.json and .png")


if __name__ == "__main__":
    main()
