"""Runtimes in turn over one network: parity first, then times of every case, and how many times as long each takes."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import peers
import torch
from peers import Peer, forward, labels_of
from tqdm import tqdm

from pyflow import core, native
from pyflow.engines import eager
from pyflow.engines.eager import denoise_function
from pyflow.models import parameters
from pyflow.spec import MLP, Spec
from pyflow.timing import interleave, timed

LARGE = 5_000_000  # weights from which on 1 and 4 steps are measured, and the rest with --full only
ERRORS = {"fp32": 1e-5, "bf16": 1.5e-2, "int8": 3e-2}  # of a prediction, as a share of its largest value
PARITY_STEPS = 4
SHORTEST = 2e-3  # seconds that a timed call takes at least: a shorter one is repeated
TWO_THREADS = ", 2 threads"
EAGER_LOOP, ONNX_LOOP = "torch eager fp32, Python loop", "ONNX Runtime fp32, Python loop"


@dataclass
class Subject:
    """A network with random weights, the folder of what runtimes open, and those that could be opened, by batch."""

    name: str
    spec: Spec
    model: torch.nn.Module
    folder: Path
    opened: dict[tuple[str, int], native.Denoiser] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        return parameters(self.model)


@dataclass(frozen=True)
class Bench:
    """What the command line asks for."""

    threads: int
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    few_steps: tuple[int, ...]  # of a large network
    rounds: int
    budget: float
    starts: int
    peers: tuple[Peer, ...]
    cache: Path

    @property
    def clock(self) -> str:
        return "cpu_ms" if self.threads == 1 else "wall_ms"

    def steps_of(self, subject: Subject) -> tuple[int, ...]:
        return self.few_steps if subject.weights >= LARGE else self.steps


class Clocked:
    """A call that keeps the processor's seconds of all threads; a machine that others use stretches the wall's only."""

    def __init__(self, call: Callable[[], object], repeats: int) -> None:
        self.call, self.repeats = call, repeats
        self.seconds: list[float] = []

    def __call__(self) -> None:
        before = time.process_time()
        for _ in range(self.repeats):
            self.call()
        self.seconds.append(time.process_time() - before)


def left_out(what: str, error: object) -> dict[str, str]:
    why = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    tqdm.write(f"left out: {what}: {why}")
    return {"left out": what, "why": why}


# ---- parity
def trajectory(subject: Subject, batch: int) -> Iterator[tuple[core.Row, np.ndarray, np.ndarray]]:
    """The states that a sampler meets, and what torch predicts there: float32, channels first."""
    truth = eager.runner(subject.model, subject.spec).denoiser
    x = _start(subject.spec, batch, seed=0)
    for row in _plan(subject, PARITY_STEPS):
        prediction = forward(truth, subject.spec, batch, row, x)
        yield row, x, prediction
        x, _ = native.fused_step(row, x=x, cond=prediction)


def relative(came: np.ndarray, truth: np.ndarray) -> float:
    """A NaN anywhere is an infinite error."""
    worst = float(np.abs(came - truth).max() / np.abs(truth).max())
    return worst if np.isfinite(worst) else float("inf")


def errors(subject: Subject, batch: int) -> dict[str, float]:
    found = {name: 0.0 for name, size in subject.opened if size == batch}
    for row, x, truth in trajectory(subject, batch):
        for name in found:
            came = forward(subject.opened[name, batch], subject.spec, batch, row, x)
            found[name] = max(found[name], relative(came, truth))
    return found


# ---- times
def measure(bench: Bench, subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]]]:
    """Rows and ratios. Ours is not timed beyond the error of its class; a peer is, but it is nobody's measure."""
    rows, ratios, gone = [], [], []
    classes = {peer.name: peer.precision for peer in bench.peers}
    for batch in bench.batches:
        worst = errors(subject, batch)
        for name in [name for name in worst if name.startswith("native") and worst[name] > ERRORS[classes[name]]]:
            why = f"its error is {worst[name]:.1e}; allowed of {classes[name]}: {ERRORS[classes[name]]:.1e}"
            gone.append(left_out(f"{name}, {subject.name}, batch {batch}", why))
            del worst[name]
        for steps in bench.steps_of(subject):
            more = {f"{name}{TWO_THREADS}": worst[name] for name in worst if _scales(bench, subject, name, steps)}
            found = _case(
                bench, subject, batch, steps, {**worst, **more, **_loop_errors(bench, subject, batch)}, classes
            )
            rows += found
            ratios += ratios_of(bench, found)
    for row in rows:
        del row["rounds_ms"]
    return rows, ratios, gone


def _scales(bench: Bench, subject: Subject, name: str, steps: int) -> bool:
    apart = len(os.sched_getaffinity(0)) > 1 and bench.threads == 1 and steps <= PARITY_STEPS
    return name.startswith("native") and apart and not isinstance(subject.spec.network, MLP)


def _loops(bench: Bench, subject: Subject, plan: core.Plan, batch: int) -> dict[str, Callable[[], np.ndarray]]:
    """The loop and the network's calls in Python, which cost something beside a small network only."""
    if not isinstance(subject.spec.network, MLP):
        return {}
    spec, names, labels = subject.spec, peers.inputs_of(subject.spec), labels_of(subject.spec, batch)
    known = np.zeros(batch, np.int64) if labels is None else labels
    start = _start(spec, batch, seed=1)
    predict = denoise_function(subject.model, spec, torch.from_numpy(known))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = bench.threads
    session = onnxruntime.InferenceSession(subject.folder / peers.GRAPH, options, providers=["CPUExecutionProvider"])

    def run(x: np.ndarray, s: float, t: float, labelled: bool) -> np.ndarray:
        given = {"x": x, "s": np.full(batch, s, np.float32), "t": np.full(batch, t, np.float32), "label": known}
        return session.run(None, {name: given[name] for name in names})[0]

    return {
        EAGER_LOOP: lambda: core.sample(predict, plan, lambda row: torch.from_numpy(start)).numpy(),
        ONNX_LOOP: lambda: core.sample(run, plan, lambda row: start),
    }


def _loop_errors(bench: Bench, subject: Subject, batch: int) -> dict[str, float]:
    """Of final states, beside those of torch."""
    loops = _loops(bench, subject, _plan(subject, PARITY_STEPS), batch)
    return {name: relative(call(), loops[EAGER_LOOP]()) for name, call in loops.items()}


def _plan(subject: Subject, steps: int) -> core.Plan:
    return subject.spec.plan(core.uniform_grid(steps))


def _start(spec: Spec, batch: int, seed: int) -> np.ndarray:
    shape = spec.network.shape
    return native.normal(seed, 0, batch, int(np.prod(shape)), 0).reshape(batch, *shape)


def _calls(
    bench: Bench, subject: Subject, batch: int, steps: int, names: Iterable[str]
) -> dict[str, Callable[[], object]]:
    spec, plan = subject.spec, _plan(subject, steps)
    given = {"batch": batch, "label": labels_of(spec, batch), "noise0": _start(spec, batch, seed=1)}
    calls: dict[str, Callable[[], object]] = {**_loops(bench, subject, plan, batch)}
    for name in names:
        if name in calls:
            continue
        alone = name.removesuffix(TWO_THREADS)
        denoiser = subject.opened[name, batch] if name == alone else _with_two_threads(bench, subject, alone)
        calls[name] = partial(native.sample, denoiser, plan, **given)
    return calls


def _case(
    bench: Bench, subject: Subject, batch: int, steps: int, worst: Mapping[str, float], classes: Mapping[str, str]
) -> list[dict[str, Any]]:
    few, calls = (_calls(bench, subject, batch, count, worst) for count in (min(steps, PARITY_STEPS), steps))
    shortest = min(map(timed, few.values())) * steps / min(steps, PARITY_STEPS)  # and that was the warm-up
    # A case of 200 calls repeats one of 4: where it takes long, one round of it is timed.
    once = steps > PARITY_STEPS and len(calls) * shortest > bench.budget / 6
    repeats = max(1, round(SHORTEST / shortest))
    clocked = {name: Clocked(call, repeats) for name, call in calls.items()}
    timings = interleave(clocked, rounds=1 if once else bench.rounds, warmup=0, budget=bench.budget)
    unit = 1e3 / repeats
    return [
        {
            "network": subject.name,
            "batch": batch,
            "steps": steps,
            "variant": name,
            "precision": classes.get(name.removesuffix(TWO_THREADS), "fp32"),
            "threads": 2 if name.endswith(TWO_THREADS) else bench.threads,
            "error": worst[name],
            "wall_ms": unit * timing.median,
            "cpu_ms": unit * median(clocked[name].seconds),
            "rounds": len(timing.seconds),
            "rounds_ms": {
                "wall_ms": [unit * seconds for seconds in timing.seconds],
                "cpu_ms": [unit * seconds for seconds in clocked[name].seconds],
            },
        }
        for name, timing in timings.items()
    ]


def _with_two_threads(bench: Bench, subject: Subject, name: str) -> native.Denoiser:
    key = (f"{name}{TWO_THREADS}", 0)
    if key not in subject.opened:
        peer = next(peer for peer in bench.peers if peer.name == name)
        subject.opened[key] = peer.open(subject.folder, subject.spec, 1, 2)
    return subject.opened[key]


def ratios_of(bench: Bench, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as long the others take, as medians over the rounds; the best peer is within its class's error."""
    found = []
    for mine in (row for row in rows if row["variant"].startswith("native")):
        clock = bench.clock if mine["threads"] == bench.threads else "wall_ms"
        others = [row for row in rows if not row["variant"].startswith("native") or row["threads"] < mine["threads"]]
        over = {
            row["variant"]: median(a / b for a, b in zip(row["rounds_ms"][clock], mine["rounds_ms"][clock]))
            for row in others
        }
        rivals = {
            row["variant"]: row["error"]
            for row in others
            if (row["precision"], row["threads"]) == (mine["precision"], mine["threads"])
            and not row["variant"].startswith("native")
        }
        right = [name for name, error in rivals.items() if error <= ERRORS[mine["precision"]]]
        best, fastest = (min(names, key=over.__getitem__, default=None) for names in (right, rivals))
        case = {name: mine[name] for name in ("network", "batch", "steps", "variant", "precision", "threads")}
        found.append({**case, "best_peer": best, "ratio": over.get(best), "fastest_peer": fastest, "over": over})
    return found
