"""The demo: a teacher and its one-step student on handwritten digits, from nothing to a report, on a CPU.

Every stage leaves an artefact in the run's folder; a second run reuses what is finished and resumes what is not.
"""

import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import commands, demo_page, drawing
from .demo_page import Measure, Report
from .latency import latency
from .loading import load
from .quality import PICTURES, Judge
from .sampler import Flow
from .timing import machine

STEPS = (1, 2, 4, 200)
GUIDANCE = 2.0
PAIRS = 2560
SHOWN = 50
TIMED_BATCH = 16


def run(folder: Path, report_folder: Path) -> list[Measure]:
    drawing.refuse_missing()
    started = time.perf_counter()
    teacher, student, pairs = folder / "teacher", folder / "student", folder / "pairs"
    commands.train_judge(folder / "classifier", "digits")
    judge = Judge.of(folder / "classifier", "digits")
    _say("classifier", f"reads {judge.accuracy:.1%} of the held-out digits")

    _stage("teacher", commands.train_teacher("cfm", "digits", teacher), teacher)
    _stage("teacher engine", commands.export_engine(teacher, _engine(teacher), "onnx"), _engine(teacher))
    made = commands.make_pairs(
        _engine(teacher), pairs, count=PAIRS, steps=16, solver="ab2", guidance=GUIDANCE, seed=2**31
    )
    _stage("pairs", made > 0, pairs)
    _stage("student", commands.distil("reflow", teacher, pairs, student), student)
    _stage("student engine", commands.export_engine(student, _engine(student), "onnx"), _engine(student))

    flows = {"teacher": (load(_engine(teacher)), GUIDANCE), "student": (load(_engine(student)), 1.0)}
    measures, pictures = _measure(flows, judge)
    one = next(measure for measure in measures if (measure.method, measure.steps) == ("student", 1))
    found = Report(
        title="Handwritten digits in one network call",
        lead=f"The student makes in one call what its teacher makes in {STEPS[-1]}: {one.ms_per_image:.2f} ms a "
        f"picture, {one.speedup:.0f} times faster; the classifier reads {one.label_accuracy:.1%} of them as asked.",
        measures=measures,
        floor=judge.floor,
        pictures=pictures,
        protocol=f"ONNX Runtime under the C++ loop. ms/image and speed-up at batch {TIMED_BATCH}, first image at "
        f"batch 1, medians of interleaved rounds. The teacher runs with guidance {GUIDANCE:g} (two predictions a step, "
        "in one batch), which the student has in its weights. Distance: Fréchet, in the "
        f"{judge.real.shape[1]} features of a classifier trained in this run ({judge.accuracy:.1%} right on held-out "
        f"digits), {PICTURES} pictures against {len(judge.real)} real ones.",
        facts={"command": "pyflow demo", **machine()},
    )
    demo_page.write(found, report_folder)
    taken = time.perf_counter() - started
    print(f"\n{demo_page.summary(measures)}\n\nreport: {report_folder / 'index.html'}  ({taken:.0f} s)")
    return measures


def _measure(
    flows: dict[str, tuple[Flow, float]], judge: Judge
) -> tuple[list[Measure], dict[tuple[str, int], np.ndarray]]:
    """Judge and time every plan of every flow; the pictures are of the same seed and labels."""
    quality: dict[tuple[str, int], list[float]] = {}
    pictures: dict[tuple[str, int], np.ndarray] = {}
    plans = [(method, steps) for method in flows for steps in STEPS]
    for method, steps in tqdm(plans, desc="judged", unit="plan"):
        flow, guidance = flows[method]
        *quality[method, steps], images = judge.of_flow(flow, steps, guidance)
        pictures[method, steps] = images[:SHOWN]
    seconds: dict[tuple[str, int, int], float] = {}
    for method, (flow, guidance) in flows.items():
        timings = latency(flow, STEPS, (1, TIMED_BATCH), guidance)
        seconds |= {(method, *case): timing.median for case, timing in timings.items()}
    slowest = seconds["teacher", STEPS[-1], TIMED_BATCH]
    measures = []
    for method, steps in plans:
        per_image = seconds[method, steps, TIMED_BATCH] / TIMED_BATCH
        first_image = seconds[method, steps, 1]
        measures.append(
            Measure(
                method,
                steps,
                ms_per_image=1e3 * per_image,
                images_per_second=1 / per_image,
                first_image_ms=1e3 * first_image,
                distance=quality[method, steps][0],
                label_accuracy=quality[method, steps][1],
                speedup=slowest / TIMED_BATCH / per_image,
            )
        )
    return measures, pictures


def _engine(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".engine")


def _stage(name: str, made: bool, folder: Path) -> None:
    _say(name, f"made: {folder}" if made else f"reused: {folder} was finished already")


def _say(name: str, text: str) -> None:
    print(f"{name:>15}  {text}", flush=True)
