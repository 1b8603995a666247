"""Exported engines on a GPU beside the loops of latency.py: built, proved, timed; what is not installed says why.

python benchmarks/gpu/engines.py --out DIR [--network unet-36M] [--budget 480] [--tiny --device cpu]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import bench
import torch
from pyflow.training.recipes import UNET_1M, UNET_36M
from torch import nn

from pyflow import engines
from pyflow.engines.manifest import BOUNDS, Manifest
from pyflow.engines.runner import Runner
from pyflow.export import BUILDERS
from pyflow.export.build import Order
from pyflow.export.shapes import Denoiser
from pyflow.models import lowered, random_network
from pyflow.spec import Spec

NETWORKS = {"unet-1M": UNET_1M, "unet-36M": UNET_36M}
STEPS, BATCHES = (1, 4), (1, 16, 256)
ROUNDS, CASE_SECONDS = 30, 4.0
COLUMNS = ("network", "batch", "steps", "variant", "median_ms", "p99_ms", "psnr", "made_seconds")


@dataclass(frozen=True)
class Engine:
    """`provider` is what ONNX Runtime calls the device, where that is not the script's own."""

    to: str
    precision: str
    provider: str | None = None

    @property
    def name(self) -> str:
        return f"{self.to}{f' on {self.provider}' if self.provider else ''} {self.precision}"


ENGINES = (
    Engine("onnx", "fp32"),
    Engine("onnx", "fp16"),
    Engine("onnx", "fp16", "tensorrt"),
    Engine("tensorrt", "fp16"),
    Engine("tensorrt", "bf16"),
    Engine("aoti", "bf16"),
)
REHEARSED = (Engine("onnx", "fp32"), Engine("tensorrt", "bf16"))


def opened(engine: Engine, model: nn.Module, spec: Spec, device: str) -> Runner:
    """The engine as `pyflow export` builds it, opened as `pyflow.load` does; its proof is this script's."""
    order = Order(precision=engine.precision, device=device)
    order.check(spec)
    built = BUILDERS[engine.to](model, spec, order)
    draft = Manifest(
        backend=engine.to,
        what=order.what,
        precision=order.precision,
        spec=spec,
        inputs=Denoiser.inputs_of(spec),
        weights_sha256="",
        files={},
        requires=built.requires,
        versions={},
        certificate=None,
    )
    return engines.runner(draft, built.files, device=engine.provider or device)


def plain(model: nn.Module, spec: Spec, device: str) -> Runner:
    network = lowered(model, torch.bfloat16).to(device).to(memory_format=torch.channels_last).eval()
    return bench.PlainLoop(network, spec, device, torch.bfloat16)


def graph(model: nn.Module, spec: Spec, device: str) -> Runner:
    from pyflow.engines.cuda import CudaRunner

    return CudaRunner(model, spec, device, torch.bfloat16)


def contenders(
    name: str, model: nn.Module, spec: Spec, device: str, chosen: tuple[Engine, ...], budget: bench.Budget
) -> tuple[dict[str, bench.Contender], list[dict[str, str]]]:
    """The loops of latency.py to compare with, then every engine that this machine can make."""
    ways: dict[str, tuple[Callable[..., Runner], str]] = {"torch eager": (plain, "bf16"), "CUDA graph": (graph, "bf16")}
    ways |= {engine.name: (partial(opened, engine), engine.precision) for engine in chosen}
    made, left_out = {}, []
    for way, (make, precision) in ways.items():
        if budget.left < 0:
            left_out.append(bench.left_out(f"{name}, {way}", "the budget is used"))
            continue
        began = time.perf_counter()
        try:
            runner = make(model, spec, device)
        except Exception as error:  # one that breaks does not cost the others their minutes
            left_out.append(bench.left_out(f"{name}, {way}", f"{type(error).__name__}: {error}"))
            continue
        made[way] = bench.Contender(runner, BOUNDS[precision], time.perf_counter() - began)
    return made, left_out


def run(given: argparse.Namespace) -> None:
    networks = {"tiny": bench.TINY} if given.tiny else NETWORKS
    names = networks if given.network is None else {given.network: networks[given.network]}
    steps, batches, rounds = ((1, 2), (1, 3), 3) if given.tiny else (STEPS, BATCHES, ROUNDS)
    torch.backends.cudnn.benchmark = True
    budget = bench.Budget(given.budget)
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    for done, (name, network) in enumerate(names.items()):
        share = budget.share(len(names) - done)
        model, spec = random_network(network), Spec(network)
        truths = bench.Truths(model, spec)
        made, missing = contenders(name, model, spec, given.device, REHEARSED if given.tiny else ENGINES, share)
        left_out += missing
        for batch, count in ((batch, count) for batch in batches for count in steps):
            case = bench.case_of(spec, count, batch)
            if share.left < 0:
                left_out.append(bench.left_out(f"{name}, {case}", "the budget is used"))
                continue
            came, failed = bench.proved_and_timed(made, truths, case, rounds, CASE_SECONDS)
            rows += [{"network": name, **row} for row in came]
            left_out += failed
    facts = {"command": "benchmarks/gpu/engines.py", **bench.facts(given.device)}
    bench.keep(given.out, "engines", {"facts": facts, "rows": rows, "left_out": left_out})
    bench.show(rows, COLUMNS)


if __name__ == "__main__":
    parser = bench.arguments(__doc__, budget=480)
    parser.add_argument("--network", choices=NETWORKS, help="one alone, where both are too much for one call")
    run(bench.parsed(parser))
