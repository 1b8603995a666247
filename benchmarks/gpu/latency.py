"""Latency on a GPU of 1, 2, 4 and 200 steps: the loop as people write it, compiled in every way, and as one CUDA graph.

python benchmarks/gpu/latency.py --out DIR [--network unet-36M] [--batch 16] [--budget 480] [--tiny --device cpu]

All in bfloat16 inside and float32 outside, all with the same noise; nothing is timed before its states agree with the
float32 reference, and the figure of that agreement is kept beside its time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bench
import torch
from pyflow.training.recipes import UNET_1M, UNET_36M
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch.nn import functional as F

from pyflow.certificate import Case
from pyflow.engines.manifest import BOUNDS
from pyflow.engines.runner import Request, Runner
from pyflow.errors import BackendUnavailable
from pyflow.models import lowered, random_network
from pyflow.spec import Spec
from pyflow.timing import interleave

DTYPE, BOUND = torch.bfloat16, BOUNDS["bf16"]
NETWORKS = {"unet-1M": UNET_1M, "unet-36M": UNET_36M}
STEPS, BATCHES = (1, 2, 4, 200), (1, 16, 256)
ROUNDS, CASE_SECONDS = 50, 4.0
COMPILE_SECONDS = 30.0  # guessed of torch.compile until it was measured
COLUMNS = ("network", "batch", "steps", "variant", "median_ms", "p99_ms", "first_over_this", "psnr")


@dataclass(frozen=True)
class Subject:
    name: str
    model: nn.Module
    spec: Spec
    device: str
    batch: int

    def network(self) -> nn.Module:
        return lowered(self.model, DTYPE).to(self.device).to(memory_format=torch.channels_last).eval()


# ---- the variants
def plain(subject: Subject) -> Runner:
    return bench.PlainLoop(subject.network(), subject.spec, subject.device, DTYPE)


def compiled(subject: Subject, mode: str) -> Runner:
    network = torch.compile(subject.network(), mode=mode, dynamic=False)
    return bench.PlainLoop(network, subject.spec, subject.device, DTYPE)


def graph(subject: Subject, compile: bool) -> Runner:
    from pyflow.engines.cuda import CudaRunner

    return CudaRunner(subject.model, subject.spec, subject.device, DTYPE, compile)


def aoti(subject: Subject) -> Runner:
    """Compiled ahead of time for one batch size, as the others are, and called from Python."""
    network, batch, shape = subject.network(), subject.batch, subject.spec.network.shape
    x = torch.zeros(batch, *shape, device=subject.device, dtype=DTYPE).to(memory_format=torch.channels_last)
    s, t = torch.zeros(2, batch, device=subject.device).unbind()
    label = torch.zeros(batch, dtype=torch.int64, device=subject.device)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(network, (x, s.clone(), t.clone(), label))
        package = aoti_compile_and_package(program, package_path=str(Path(folder, "network.pt2")))
        return bench.PlainLoop(aoti_load_package(package), subject.spec, subject.device, DTYPE)


class DiffusersLoop(bench.PlainLoop):
    """The same network under diffusers' flow-matching scheduler, whose sigma is 1 - t, whose velocity points back."""

    def loop(self, request: Request) -> Tensor:
        try:
            from diffusers import FlowMatchEulerDiscreteScheduler
        except ImportError as error:
            raise BackendUnavailable(f"diffusers is not here ({error})") from error
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[1 - row.s for row in request.plan], device=self.device)
        label, x = torch.tensor(request.label, device=self.device), self.noise(request, 0)
        for row, timestep in zip(request.plan, scheduler.timesteps):
            velocity = self.predict(x, row.s, row.t, label)
            x = scheduler.step(-velocity, timestep, x, return_dict=False)[0]
        return x


def diffusers(subject: Subject) -> Runner:
    return DiffusersLoop(subject.network(), subject.spec, subject.device, DTYPE)


@dataclass(frozen=True)
class Variant:
    """`compiles` is what making it costs, as a multiple of torch.compile's default; cheap ones come first."""

    name: str
    make: Callable[[Subject], Runner]
    compiles: float = 0.0


VARIANTS = (
    Variant("torch eager", plain),
    Variant("diffusers' scheduler, eager", diffusers),
    Variant("CUDA graph", partial(graph, compile=False)),
    Variant("torch.compile", partial(compiled, mode="default"), 1.0),
    Variant("CUDA graph, compiled", partial(graph, compile=True), 1.0),
    Variant("torch.compile reduce-overhead", partial(compiled, mode="reduce-overhead"), 1.0),
    Variant("AOTInductor", aoti, 2.0),
    Variant("torch.compile max-autotune", partial(compiled, mode="max-autotune"), 5.0),
)


# ---- the protocol
class Group:
    """All variants of one network at one batch size."""

    def __init__(self, subject: Subject, truths: bench.Truths, budget: bench.Budget, rounds: int) -> None:
        self.subject, self.truths, self.budget, self.rounds = subject, truths, budget, rounds
        self.contenders: dict[str, bench.Contender] = {}
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []

    def make(self, variants: Sequence[Variant], steps: int) -> None:
        """Each variant up to its first proved states; three quarters of the budget at most go into compilers."""
        compile_seconds, kept = COMPILE_SECONDS, self.budget.left / 4
        for variant in variants:
            where = f"{self.subject.name}, batch {self.subject.batch}, {variant.name}"
            needed = variant.compiles * compile_seconds
            if needed > self.budget.left - kept:
                self.left_out.append(bench.left_out(where, f"about {needed:.0f} s to compile; the budget is used"))
                continue
            began = time.perf_counter()
            try:
                runner = self._proved(variant, steps)
            except Exception as error:  # one that breaks does not cost the others their minutes
                self.left_out.append(bench.left_out(where, f"{type(error).__name__}: {error}"))
                continue
            seconds = time.perf_counter() - began
            self.contenders[variant.name] = bench.Contender(runner, BOUND, seconds)
            if variant.compiles == 1.0:
                compile_seconds = seconds

    def _proved(self, variant: Variant, steps: int) -> Runner:
        runner = variant.make(self.subject)
        self.truths.prove(runner, self.case(steps), BOUND)
        return runner

    def case(self, steps: int) -> Case:
        return bench.case_of(self.subject.spec, steps, self.subject.batch)

    def time(self, steps: int) -> None:
        """One plan: parity, which is the warm-up too, and then all variants in turn."""
        where = f"{self.subject.name}, batch {self.subject.batch}, {steps} steps"
        last = [row for row in self.rows if row["steps"] == self.rows[-1]["steps"]] if self.rows else []
        expected = 5 * sum(row["median_ms"] * 1e-3 * steps / row["steps"] for row in last)  # parity, capture, 3 rounds
        if expected > self.budget.left:
            self.left_out.append(bench.left_out(where, f"about {expected:.0f} s; the budget is used"))
            return
        rows, failed = bench.proved_and_timed(self.contenders, self.truths, self.case(steps), self.rounds, CASE_SECONDS)
        self.rows += [{"network": self.subject.name, **row} for row in rows]
        self.left_out += failed


# ---- one kernel
def norm_rows(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Group norm, FiLM and SiLU as the UNet says them, compiled, and as one kernel; the mean of several launches."""
    from pyflow.kernels import norm

    rows, launches = [], 1 if tiny else 20
    for batch, channels, side in ((2, 16, 8),) if tiny else ((1, 128, 32), (16, 128, 32), (256, 128, 32)):
        x = torch.randn(batch, channels, side, side, device=device).to(DTYPE, memory_format=torch.channels_last)
        weight, bias = torch.randn(2, channels, device=device).to(DTYPE).unbind()
        scale, shift = torch.randn(batch, 2 * channels, device=device).to(DTYPE).chunk(2, dim=1)
        given = (x, weight, bias, scale, shift)
        ways = {"eager": _norm, "compiled": torch.compile(_norm, dynamic=False), "kernel": norm.norm_film_silu}
        truth = norm.reference(*given).float()
        errors = {
            name: float((way(*given).float() - truth).abs().max() / truth.abs().max()) for name, way in ways.items()
        }
        if not max(errors.values()) <= 0.02:  # bfloat16 rounds by 0.004, and eager after each operation
            bench.left_out(f"norm at {tuple(x.shape)}", f"the ways differ: {errors}")
            continue
        timings = interleave({name: partial(_launched, way, given, launches) for name, way in ways.items()}, budget=4)
        for name, timing in timings.items():
            case = {"kernel": "norm, FiLM, SiLU", "shape": f"{batch}x{channels}x{side}x{side}", "way": name}
            rows.append({**case, "median_us": 1e6 * timing.median / launches, "relative": errors[name]})
    return rows


def _norm(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 8, weight, bias) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])


def _launched(way: Callable[..., Tensor], given: Sequence[Tensor], launches: int) -> None:
    for _ in range(launches):
        way(*given)
    if given[0].is_cuda:
        torch.cuda.synchronize()


# ---- the run
def run(given: argparse.Namespace) -> None:
    networks = {"tiny": bench.TINY} if given.tiny else NETWORKS
    chosen = networks if given.network is None else {given.network: networks[given.network]}
    steps, batches, rounds = ((1, 2), (1, 3), 3) if given.tiny else (STEPS, BATCHES, ROUNDS)
    batches = batches if given.batch is None else (given.batch,)
    # A rehearsal has no minute for a compiler of its own; the others are no-ops under TORCHDYNAMO_DISABLE=1.
    variants = [variant for variant in VARIANTS if not (given.tiny and variant.make is aoti)]
    torch.backends.cudnn.benchmark = True  # for all alike
    budget, rows, kernels, left_out = bench.Budget(given.budget), [], [], []
    facts = {"command": "benchmarks/gpu/latency.py", "dtype": str(DTYPE), **bench.facts(given.device)}
    content = {"facts": facts, "rows": rows, "kernels": kernels, "left_out": left_out}
    groups = [(name, network, batch) for name, network in chosen.items() for batch in batches]
    for done, (name, network, batch) in enumerate(groups):
        if batch == batches[0]:
            model, spec = random_network(network), Spec(network)
            truths = bench.Truths(model, spec)
        torch._dynamo.reset()  # it keeps eight variants of one function
        subject = Subject(name, model, spec, given.device, batch)
        group = Group(subject, truths, budget.share(len(groups) - done), rounds)
        group.make(variants, steps[0])
        for count in steps:
            group.time(count)
        rows += group.rows
        left_out += group.left_out
        bench.keep(given.out, "latency", content)
    draw(given.out / "latency.png", rows, facts)
    bench.show(rows, COLUMNS)
    kernels += norm_rows(given.device, given.tiny)
    bench.keep(given.out, "latency", content)
    bench.show(kernels, ("kernel", "shape", "way", "median_us", "relative"))


def draw(path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    try:
        import matplotlib.figure
    except ImportError as error:
        bench.left_out("the picture", error)
        return
    panels = list(dict.fromkeys((row["network"], row["batch"]) for row in rows))
    names = list(dict.fromkeys(row["variant"] for row in rows))
    figure = matplotlib.figure.Figure(figsize=(4.5 * max(1, len(panels)), 4.2), layout="constrained")
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in names:
            line = [row for row in rows if (row["network"], row["batch"], row["variant"]) == (*panel, name)]
            axes.loglog([row["steps"] for row in line], [row["median_ms"] for row in line], marker="o", label=name)
        axes.set(title=f"{panel[0]}, batch {panel[1]}", xlabel="steps", ylabel="median ms" if place == 1 else None)
        axes.grid(alpha=0.3)
    if panels:
        axes.legend(fontsize=7)
    figure.suptitle(f"{facts.get('gpu', facts['processor'])}, {facts['dtype']}, commit {facts['commit']}", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = bench.arguments(__doc__, budget=480)
    parser.add_argument("--network", choices=NETWORKS, help="one alone, where both are too much for one call")
    parser.add_argument("--batch", type=int, help="one alone")
    run(bench.parsed(parser))
