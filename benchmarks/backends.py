"""Every backend that is here, side by side: latency by steps and batch, cold start, size; parity before anything else.

python benchmarks/backends.py [--threads 1] [--out benchmarks/results] [--tiny]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyflow.training.recipes import UNET_1M
from tqdm import tqdm

from pyflow import Flow, checkpoint, load
from pyflow.certificate import psnr
from pyflow.engines.manifest import BOUNDS
from pyflow.errors import BackendUnavailable, InvalidInput
from pyflow.export import export
from pyflow.export.build import Order
from pyflow.models import random_network
from pyflow.spec import Network, Spec, UNet
from pyflow.timing import interleave, machine

STEPS, BATCHES = (1, 2, 4, 200), (1, 16, 64)
TINY = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3)
STYLES = {"bf16": "--", "int8": ":", "fp16": "-.", "step fp32": (0, (6, 2)), "sampler fp32": (0, (1, 3))}
EAGER, COMPILE = "torch eager fp32", "torch.compile fp32"


@dataclass(frozen=True)
class Variant:
    """An export to time; the denoiser's if nothing else is said."""

    to: str
    precision: str
    what: str = "denoiser"

    @property
    def name(self) -> str:
        return f"{self.to}{'' if self.what == 'denoiser' else ' ' + self.what} {self.precision}"


VARIANTS = (
    Variant("onnx", "fp32"),
    Variant("onnx", "fp32", "step"),
    Variant("onnx", "fp32", "sampler"),
    Variant("onnx", "fp16"),
    Variant("onnx", "int8"),
    Variant("aoti", "fp32"),
    Variant("aoti", "bf16"),
    Variant("openvino", "fp32"),
    Variant("openvino", "bf16"),
)


@dataclass(frozen=True)
class Subject:
    """One way to run the network, ready: a flow, and what it takes on disk."""

    flow: Flow
    precision: str
    source: Path
    backend: str | None
    size: int
    export_seconds: float


def subjects(network: Network, folder: Path, threads: int) -> dict[str, Subject]:
    """The network with random weights, as a checkpoint and as every engine that this machine can make."""
    source = folder / "checkpoint"
    checkpoint.save(source, random_network(network), Spec(network))
    made = {EAGER: Subject(load(source, threads=threads), "fp32", source, "eager", _size(source), 0.0)}
    made[COMPILE] = Subject(
        load(source, threads=threads, backend="compile"), "fp32", source, "compile", _size(source), 0.0
    )
    for variant in tqdm(VARIANTS, desc="exported", unit="engine"):
        place, started = folder / f"{variant.name.replace(' ', '-')}.engine", time.perf_counter()
        try:
            export(source, place, variant.to, Order(what=variant.what, precision=variant.precision))
        except (BackendUnavailable, InvalidInput) as error:
            tqdm.write(f"left out: {variant.name}: {error}")
            continue
        seconds = time.perf_counter() - started
        flow = load(place, threads=threads)
        made[variant.name] = Subject(flow, variant.precision, place, None, _size(place), seconds)
    return made


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def parity(subject: Subject, truth: np.ndarray, call: Callable[[], Any]) -> dict[str, float]:
    """How far the states are from eager's; nothing beyond its bound is timed."""
    came = call().states
    bound = BOUNDS[subject.precision]
    found = {"relative": float(np.abs(came - truth).max() / np.abs(truth).max()), "psnr": psnr(came, truth)}
    kept = found["relative"] <= bound.relative if bound.relative is not None else found["psnr"] >= (bound.psnr or 0.0)
    assert kept, f"{subject.source}: {found}, allowed: {bound}; nothing was timed"
    return found


def latencies(made: dict[str, Subject], batches: tuple[int, ...], budget: float) -> list[dict[str, Any]]:
    """One row for each batch, step count and variant that holds this plan; variants interleaved, medians."""
    rows = []
    cases = [(batch, steps) for batch in batches for steps in STEPS]
    for batch, steps in tqdm(cases, desc="timed", unit="case"):
        calls = {
            name: partial(subject.flow.sample, batch, steps=steps, label=0, seed=1)
            for name, subject in made.items()
            if "sampler" not in name or steps <= 4
        }
        # 200 steps repeat what 4 do: their parity is that of 4, at the same batch.
        # Of a batch of them one round is timed.
        proved = {name: partial(call, steps=min(steps, 4)) for name, call in calls.items()}
        truth = proved[EAGER]().states
        errors = {name: parity(made[name], truth, call) for name, call in proved.items()}
        long = steps > 4 and batch > 1
        timings = interleave(calls, rounds=1 if long else 15, warmup=0 if long else 1, budget=budget)
        for name, timing in timings.items():
            row = {"batch": batch, "steps": steps, "variant": name, "rounds": len(timing.seconds)}
            rows.append({**row, "median_ms": 1e3 * timing.median, "p99_ms": 1e3 * timing.p99, **errors[name]})
    return rows


COLD = """
import time; started = time.perf_counter()
import sys; import pyflow
flow = pyflow.load(sys.argv[1], threads=int(sys.argv[2]), **({"backend": sys.argv[3]} if sys.argv[3] else {}))
flow.sample(1, steps=1, label=0)
print(time.perf_counter() - started)
"""


def cold_start(subject: Subject, threads: int) -> tuple[float, float]:
    """Seconds from the start of a process to its first picture, and of them those from the import on; no cache warm."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", COLD, str(subject.source), str(threads), subject.backend or ""]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return time.perf_counter() - started, float(done.stdout)


def cold_starts(made: dict[str, Subject], threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds in turn; what compiles on its first call takes its one round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for done in tqdm(range(rounds), desc="cold starts", unit="round"):
        for name, subject in made.items():
            if done == 0 or subject.backend != "compile":
                found[name].append(cold_start(subject, threads))
    return {
        name: dict(zip(("process_s", "import_to_picture_s"), np.median(np.array(values), axis=0).tolist()))
        for name, values in found.items()
    }


def table(rows: list[dict[str, Any]], cold: dict[str, dict[str, float]], made: dict[str, Subject]) -> str:
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        lines.append(
            f"\nbatch {batch}, median ms" + " " * 12 + "".join(f"{steps:>11}" for steps in STEPS) + "       parity"
        )
        mine = [row for row in rows if row["batch"] == batch]
        for name in dict.fromkeys(row["variant"] for row in mine):
            by_steps = {row["steps"]: row for row in mine if row["variant"] == name}
            cells = "".join(f"{by_steps[s]['median_ms']:11.2f}" if s in by_steps else " " * 11 for s in STEPS)
            worst = max(row["relative"] for row in by_steps.values())
            lines.append(f"{name:<28}{cells}{worst:13.1e}")
    lines.append(
        f"\n{'cold start':<28}{'process s':>11}{'import s':>11}{'size MB':>11}{'export s':>11}{'vs compile':>11}"
    )
    slowest = cold[COMPILE]["import_to_picture_s"]
    for name, subject in made.items():
        seconds = cold[name]
        lines.append(
            f"{name:<28}{seconds['process_s']:11.2f}{seconds['import_to_picture_s']:11.2f}{subject.size / 1e6:11.2f}"
            f"{subject.export_seconds:11.1f}{slowest / seconds['import_to_picture_s']:10.0f}x"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path, facts: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = list(dict.fromkeys(row["batch"] for row in rows))
    colours = list(dict.fromkeys(row["variant"].split()[0] for row in rows))
    figure, all_axes = pyplot.subplots(1, len(batches), figsize=(5 * len(batches), 5), squeeze=False)
    for batch, axes in zip(batches, all_axes[0]):
        for name in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if (row["batch"], row["variant"]) == (batch, name)]
            backend, _, kind = name.partition(" ")
            look = {"color": f"C{colours.index(backend)}", "linestyle": STYLES.get(kind, "-"), "marker": "o"}
            ms = [row["median_ms"] / batch for row in mine]
            axes.plot([row["steps"] for row in mine], ms, label=name, **look)
        axes.set(xscale="log", yscale="log", title=f"batch {batch}", xlabel="steps", ylabel="ms a picture")
        axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axes.grid(alpha=0.3)
    all_axes[0][0].legend(fontsize=7)
    figure.suptitle(facts, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for the rounds of one case")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with a network of 8x8 pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = {"command": "make bench-backends", "threads": arguments.threads, **machine()}  # of the commit that runs
    network, batches = (TINY, (1, 2)) if arguments.tiny else (UNET_1M, BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        made = subjects(network, Path(folder), arguments.threads)
        rows = latencies(made, batches, arguments.budget)
        cold = cold_starts(made, arguments.threads, 2 if arguments.tiny else 7)
        text = table(rows, cold, made)
        sizes = {name: {"bytes": subject.size, "export_s": subject.export_seconds} for name, subject in made.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"facts": facts, "latency": rows, "cold_start": cold, "artefacts": sizes}
    (arguments.out / "backends-cpu.json").write_text(json.dumps(record, indent=1) + "\n")
    summary = ", ".join(f"{name} {value}" for name, value in facts.items())
    plot(rows, arguments.out / "backends-cpu.png", summary)
    print(f"{text}\n\n{summary}\nkept in {arguments.out}")


if __name__ == "__main__":
    main()
