"""What the lower precisions cost on trained weights: PSNR, error of a forward, Fréchet distance, and the pictures.

python benchmarks/precision.py --subject NAME CHECKPOINT JUDGE DATA [--subject ...] [--threads 1] [--out FOLDER]
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyflow.training import classifier
from tqdm import tqdm

from pyflow import Flow, checkpoint, load
from pyflow.artefact import read_json
from pyflow.certificate import OFF_BY_ONE_BOUND, ParityError, psnr
from pyflow.demo import GUIDANCE
from pyflow.engines.manifest import BOUNDS, Bound, Certificate
from pyflow.engines.runner import Request
from pyflow.errors import PyflowError
from pyflow.export import export
from pyflow.export.build import Order
from pyflow.pictures import grid_of
from pyflow.quality import PICTURES, Judge
from pyflow.timing import machine

EAGER = "torch eager fp32"
ENGINES = ("native fp32", "native bf16", "native int8", "openvino bf16", "onnx int8")
STEPS = (1, 2, 4, 50)
COMPARED, SHOWN = 64, 12  # pictures of a PSNR, of a row of the grid
MEASURED = Bound(psnr=1.0)  # an engine beyond its precision's bound is measured all the same, and marked


@dataclass(frozen=True)
class Subject:
    """A checkpoint with the judge of its pictures. A teacher is asked with the demo's guidance."""

    name: str
    source: Path
    judge: Judge
    guidance: float

    @classmethod
    def of(cls, name: str, source: str, judge: str, data: str) -> "Subject":
        spec = checkpoint.load_spec(Path(source))
        referee = Judge.of(Path(judge), data)
        referee.refuse_misfit(spec)
        named = str(read_json(Path(judge) / classifier.RECORD)["data"])  # the data may be a folder, of any path
        return cls(name, Path(source), replace(referee, data=named), GUIDANCE if spec.null_label else 1.0)

    def facts(self) -> dict[str, Any]:
        spec, judge = checkpoint.load_spec(self.source), self.judge
        return {
            "checkpoint": str(self.source),
            "weights_sha256": checkpoint.weights_sha256(self.source),
            "trained": spec.provenance,
            "network": spec.to_json()["network"],
            "guidance": self.guidance,
            "features": f"{judge.data} classifier, {judge.real.shape[1]} features",
            "pictures": PICTURES,
            "real_pictures": len(judge.real),
            "classifier_accuracy": judge.accuracy,
            "distance_of_held_out_pictures": judge.floor,
        }


@dataclass(frozen=True)
class Made:
    """What one way to run the network made: a prediction, and by step count states, distance and pictures."""

    forward: np.ndarray
    states: dict[int, np.ndarray]
    distances: dict[int, float]
    accuracies: dict[int, float]
    images: dict[int, np.ndarray]

    @classmethod
    def by(cls, flow: Flow, subject: Subject, steps: Sequence[int]) -> "Made":
        labels = np.arange(COMPARED) % flow.spec.network.classes
        made = cls(_forward(flow, labels), {}, {}, {}, {})
        for count in steps:
            plan: dict[str, Any] = {"steps": count, "guidance": subject.guidance}
            made.states[count] = flow.sample(COMPARED, label=labels.tolist(), **plan).states
            distance, accuracy, images = subject.judge.of_flow(flow, **plan)
            made.distances[count], made.accuracies[count], made.images[count] = distance, accuracy, images[:SHOWN]
        return made


def _forward(flow: Flow, labels: np.ndarray) -> np.ndarray:
    """The network's own predictions on noise: what one row leaves that keeps nothing of the state."""
    row = flow.plan(1)[0]._replace(a=0.0, b=1.0)
    request = Request([row], len(labels), label=labels, null_label=flow.spec.network.classes)
    return flow.runner.run(request).states


def measured(
    subject: Subject, engines: Sequence[str], steps: Sequence[int], threads: int
) -> tuple[dict[str, Any], dict[str, Made]]:
    """The record of one subject, and what every engine made; what cannot be built is left out with its sentence."""
    made = {EAGER: Made.by(load(subject.source, threads=threads), subject, steps)}
    rows = [_row(EAGER, made[EAGER], made[EAGER])]
    left_out = []
    for name in tqdm(engines, desc=subject.name, unit="engine"):
        to, precision = name.split()
        with tempfile.TemporaryDirectory() as folder:
            try:
                proved = _exported(subject.source, Path(folder) / "e.engine", to, Order(precision=precision))
                made[name] = Made.by(load(Path(folder) / "e.engine", threads=threads), subject, steps)
            except PyflowError as error:
                left_out.append({"engine": name, "why": str(error)})
                tqdm.write(f"left out: {name}: {error}")
                continue
        rows.append({**_row(name, made[name], made[EAGER]), "certificate": _proved(proved, precision)})
    return {"name": subject.name, **subject.facts(), "engines": rows, "left_out": left_out}, made


def _exported(source: Path, folder: Path, to: str, order: Order) -> Certificate:
    """As a user would get it, and if nobody would, as it is."""
    try:
        return export(source, folder, to, order).proved
    except ParityError:
        return export(source, folder, to, order, bound=MEASURED).proved


def _row(name: str, made: Made, truth: Made) -> dict[str, Any]:
    by_steps = {
        str(count): {
            "psnr": round(psnr(states, truth.states[count]), 2),
            "distance": round(made.distances[count], 6),
            "change": round(made.distances[count] - truth.distances[count], 6),
            "label_accuracy": round(made.accuracies[count], 4),
        }
        for count, states in made.states.items()
    }
    error = float(np.abs(made.forward - truth.forward).max() / np.abs(truth.forward).max())
    return {"engine": name, "forward_error": error, "steps": by_steps}


def _proved(certificate: Certificate, precision: str) -> dict[str, Any]:
    """The worst of all cases of the certificate, beside the bound that an export holds this precision to."""
    bound = BOUNDS[precision]
    if bound.relative is not None:
        kept = certificate.worst <= bound.relative and certificate.off_by_one <= OFF_BY_ONE_BOUND
    else:
        kept = certificate.psnr >= (bound.psnr or 0.0)
    return {"worst": certificate.worst, "psnr": round(certificate.psnr, 2), "bound": asdict(bound), "kept": kept}


def table(record: dict[str, Any]) -> str:
    steps = list(record["engines"][0]["steps"])
    judged = f"{record['features']}, {record['pictures']} pictures against {record['real_pictures']}"
    floor = f"held-out pictures are at {record['distance_of_held_out_pictures']:.4f}"
    lines = [
        f"\n{record['name']}, guidance {record['guidance']:g}. Fréchet distance: {judged}; {floor}, and the classifier "
        f"reads {record['classifier_accuracy']:.1%} of them.",
        f"{'':<18}{'forward':>9}"
        + "".join(f"{f'dB at {count}':>10}" for count in steps)
        + "".join(f"{f'distance at {count}':>21}" for count in steps)
        + f"{'certificate':>18}",
    ]
    for row in record["engines"]:
        cells = list(row["steps"].values())
        likeness = "".join(f"{cell['psnr']:10.1f}" if row["engine"] != EAGER else f"{'':>10}" for cell in cells)
        distances = "".join(f"{cell['distance']:11.4f} ({cell['change']:+.4f})".rjust(21) for cell in cells)
        proved = row.get("certificate")
        held = f"{proved['psnr']:.1f} dB{'' if proved['kept'] else ' REFUSED'}" if proved else ""
        lines.append(f"{row['engine']:<18}{row['forward_error']:9.1e}{likeness}{distances}{held:>18}")
    return "\n".join([*lines, *(f"left out: {line['engine']}: {line['why']}" for line in record["left_out"])])


def plot(made: dict[str, dict[str, Made]], subjects: Sequence[Subject], path: Path, facts: str) -> None:
    """A teacher's pictures after its most steps, a student's after its fewest: rows are engines, columns seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(len(subjects), 1, figsize=(9, 4.2 * len(subjects)), squeeze=False)
    for subject, axes in zip(subjects, all_axes[:, 0]):
        by_engine = made[subject.name]
        choose = min if subject.guidance == 1.0 else max
        count = choose(by_engine[EAGER].images)
        images = [one.images[count] for one in by_engine.values()]
        height = images[0].shape[1] + 1
        sheet = np.asarray(grid_of(np.concatenate(images), columns=len(images[0])))
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_yticks([(row + 0.5) * height for row in range(len(images))], list(by_engine))
        axes.set(xticks=[], title=f"{subject.name}, {count} step{'s' * (count > 1)}, guidance {subject.guidance:g}")
    figure.suptitle(facts, fontsize=6, wrap=True)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    words = ("NAME", "CHECKPOINT", "JUDGE", "DATA")
    parser.add_argument("--subject", nargs=4, action="append", required=True, metavar=words)
    parser.add_argument("--engines", nargs="+", default=ENGINES, metavar="'BACKEND PRECISION'")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    command = "make bench-precision" + " CIFAR10=FOLDER" * any(Path(data).is_dir() for *_, data in arguments.subject)
    facts = {"command": command, "threads": arguments.threads, **machine()}  # of the commit that runs
    try:
        subjects = [Subject.of(*words) for words in arguments.subject]
    except PyflowError as error:
        raise SystemExit(f"precision.py: {error}") from None
    records, made = [], {}
    for subject in subjects:
        record, made[subject.name] = measured(subject, arguments.engines, arguments.steps, arguments.threads)
        records.append(record)
        print(table(record), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "precision.json").write_text(json.dumps({"facts": facts, "subjects": records}, indent=1) + "\n")
    summary = ", ".join(f"{name} {value}" for name, value in facts.items())
    plot(made, subjects, arguments.out / "precision.png", summary)
    print(f"\n{summary}\nkept in {arguments.out}")


if __name__ == "__main__":
    main()
