"""What the scripts for a GPU share: networks to time, the parity that a figure has to pass, and where figures go."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyflow import core
from pyflow.certificate import Case, Expected, measure, request_of
from pyflow.engines.manifest import Bound, Certificate
from pyflow.engines.runner import Request, Runner
from pyflow.native import Samples
from pyflow.spec import Spec, UNet
from pyflow.timing import interleave, machine, versions

# The kernels then run in Triton's interpreter, which has to be asked for before they are imported: by whoever imports
# this module, and by nothing above.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TINY = UNet(shape=(1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, classes=3)
REFERENCE_PICTURES = 2  # of each batch; a picture does not depend on its batch, and the reference runs on the CPU


def arguments(description: str | None, budget: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the JSON and the picture")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: the smallest networks, batches and plans")
    parser.add_argument("--budget", type=float, default=budget, help="seconds that it may take (%(default)s)")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"device is {given.device!r} and torch sees no NVIDIA GPU; rehearse with --tiny --device cpu")
    return given


class Budget:
    """Seconds that are left; a script leaves out what would not fit, and says so."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        return self.ends - time.perf_counter()

    def share(self, parts: int) -> "Budget":
        """A budget of its own for the first of `parts` equal ones of what is left."""
        return Budget(self.left / parts)


class Enough(BaseException):
    """The seconds of a call are used; no handler of errors should stop it."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop what runs inside when the seconds are over; it has to be such as may be killed at any point."""

    def stop(*_: object) -> None:
        raise Enough

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, seconds), 5)  # again, were it lost in what Python calls on its own
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class PlainLoop:
    """The loop that people write by hand: noise, network and step on the device, one operation after the other."""

    def __init__(self, network: Callable[..., Tensor], spec: Spec, device: str, dtype: torch.dtype) -> None:
        self.network, self.spec, self.device, self.dtype = network, spec, device, dtype

    @torch.inference_mode()
    def run(self, request: Request) -> Samples:
        began = time.perf_counter()
        states = self.loop(request).cpu().contiguous().numpy()
        seconds = np.array([time.perf_counter() - began])
        return Samples(states, seconds, seconds)

    def loop(self, request: Request) -> Tensor:
        label = torch.tensor(request.label, device=self.device)
        return core.sample(
            lambda x, s, t, labelled: self.predict(x, s, t, label), request.plan, lambda row: self.noise(request, row)
        )

    def noise(self, request: Request, row: int) -> Tensor:
        from pyflow.kernels import normal

        shape = (request.batch, *self.spec.network.shape)
        drawn = normal(request.seed, request.first, request.batch, int(np.prod(shape[1:])), row, device=self.device)
        return drawn.reshape(shape).to(memory_format=torch.channels_last)

    def predict(self, x: Tensor, s: float, t: float, label: Tensor) -> Tensor:
        times = (torch.full((len(x),), time, device=self.device) for time in (s, t))
        return self.network(x.to(self.dtype), *times, label).float()


class Truths:
    """The float32 reference of each plan, on the CPU, computed when it is first asked for."""

    def __init__(self, model: nn.Module, spec: Spec, seed: int = 0) -> None:
        self.model, self.spec, self.seed = model, spec, seed
        self.known: dict[tuple[Any, ...], Expected] = {}

    def prove(self, runner: Runner, case: Case, bound: Bound) -> Certificate:
        """ParityError where the runner is beyond the bound: then nothing of it is timed."""
        key = (tuple(case.plan), case.guidance, case.masked)
        if key not in self.known:
            few = Case(case.plan, REFERENCE_PICTURES, case.guidance, case.masked)
            self.known[key] = Expected(self.spec, [few], self.seed).compute(self.model)
        return measure(runner, self.spec, [case], self.known[key], bound)


def case_of(spec: Spec, steps: int, batch: int, guidance: float = 1.0, masked: bool = False) -> Case:
    plan = core.euler(spec.math_path, spec.prediction, core.uniform_grid(steps))
    return Case(plan, batch, guidance, masked)


@dataclass(frozen=True)
class Contender:
    """What is timed, the bound that it is held to, and the seconds that it took to make it."""

    runner: Runner
    bound: Bound
    made_seconds: float


def proved_and_timed(
    contenders: Mapping[str, Contender], truths: Truths, case: Case, rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Parity of each, which is its warm-up, then all in turn; no figure of what fails. The first is the measure."""
    proved, calls, failed = {}, {}, []
    for name, contender in contenders.items():
        try:
            proved[name] = truths.prove(contender.runner, case, contender.bound)
        except Exception as error:  # one that breaks does not cost the others their minutes
            failed.append(left_out(f"{case}, {name}", f"{type(error).__name__}: {error}"))
            continue
        calls[name] = partial(contender.runner.run, request_of(case, truths.spec, seed=1))
    timings = interleave(calls, rounds=rounds, warmup=1 if case.steps <= 4 else 0, budget=seconds)
    rows, first = [], next(iter(timings.values())).seconds if timings else ()
    for name, timing in timings.items():
        rows.append(
            {
                "batch": case.batch,
                "steps": case.steps,
                "variant": name,
                "median_ms": 1e3 * timing.median,
                "p99_ms": 1e3 * timing.p99,
                "rounds": len(timing.seconds),
                "first_over_this": statistics.median(one / own for one, own in zip(first, timing.seconds)),
                "relative": proved[name].worst,
                "psnr": proved[name].psnr,
                "made_seconds": contenders[name].made_seconds,
            }
        )
    return rows, failed


def left_out(what: str, why: object) -> dict[str, str]:
    print(f"left out: {what}: {why}", flush=True)
    return {"left out": what, "why": str(why)}


# ---- what a figure has to name
def facts(device: str) -> dict[str, Any]:
    here = {**machine(), **versions("triton", "diffusers", "onnxruntime-gpu", "tensorrt"), "device": device}
    if not device.startswith("cuda"):
        return here
    properties = torch.cuda.get_device_properties(device)
    return {
        **here,
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"not told ({type(error).__name__})"


def keep(out: Path, name: str, content: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"kept in {path}")


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    cells = [list(columns), *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
