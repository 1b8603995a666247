"""Where the time of an evaluation goes, what its functions need, and that its memory does not grow with the samples.

python benchmarks/evaluation.py [--samples 10000] [--threads 1] [--out FOLDER]

The network and the classifier are of CIFAR-10's size and have random weights, the real pictures are random too: for
time that makes no difference, and the distances mean nothing.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyflow.training import classifier
from pyflow.training.data import Dataset
from tqdm import tqdm

from pyflow import Flow, checkpoint, load, masks, native
from pyflow.artefact import json_bytes, write_file
from pyflow.engines.runner import LoopRunner
from pyflow.eval_rows import Plan, look_at, row_of
from pyflow.export import export
from pyflow.export.build import Order
from pyflow.extractors import CACHE, Extractor, Seen, open_extractor
from pyflow.metrics import Moments, frechet_distance, kernel_distance
from pyflow.models import random_network
from pyflow.neighbours import manifold, radii
from pyflow.references import reference
from pyflow.spec import Own, Spec, UNet
from pyflow.timing import interleave, machine, timed

NETWORK = UNet(channels=32, multipliers=(1, 1, 2, 2), blocks=1, attention=(16, 8, 4))
REAL, BATCH, WANTED = 10_000, 100, 0.8
FEW, MANY, WIDE = 10_000, 50_000, 2048  # samples of the memory's two runs, and their features


def shares(samples: int, threads: int, folder: Path) -> dict[str, Any]:
    """One row at one step, by a native engine and a classifier: the share of each in its seconds."""
    data = _pictures(REAL)
    classifier.train(folder / "judge", data, steps=1)
    checkpoint.save(folder / "network", random_network(NETWORK, 0), Spec(NETWORK))
    export(folder / "network", folder / "network.engine", "native", Order())
    flow = load(folder / "network.engine", threads=threads)
    extractor = open_extractor(f"classifier:{folder / 'judge'}", data)
    real = reference(data, "train", extractor)
    with tqdm(total=samples, desc="evaluated", unit="picture") as bar:
        row = row_of(flow, Plan(1), extractor, real, num_samples=samples, seeds=(0,), batch=BATCH, shown=bar.update)
    told = ("seconds", "ms_per_image", "denoiser_share", "extractor_share")
    both = row["denoiser_share"] + row["extractor_share"]
    weights = sum(tensor.numel() for tensor in random_network(NETWORK, 0).parameters())
    return {"samples": samples, "weights": weights, **{name: row[name] for name in told}, "both_shares": both}


def _pictures(count: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, *NETWORK.shape)).astype(np.uint8)
    return Dataset("random", torch.from_numpy(images), torch.arange(count) % NETWORK.classes, NETWORK.classes)


def functions() -> dict[str, Any]:
    """Seconds of each metric, and what it computes a second; beside it what a matrix product of its size does."""
    draw = np.random.default_rng(0)
    found = {}
    for count, size in ((10_000, classifier.FEATURES), (2_000, WIDE)):
        real, made = (draw.normal(size=(count, size)).astype(np.float32) for _ in range(2))
        balls, pairs = radii(real), 2 * count * count * size
        both = Moments.of(real[:, :512]), Moments.of(made[:, :512])
        block = real[: 2**22 // count]
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "a product of a block with all": (lambda b=block, m=made: b @ m.T, 2 * len(block) * count * size),
            "precision, recall, density, coverage": (lambda r=real, m=made, b=balls: manifold(r, m, b), 2 * pairs),
            "kernel distance, of 100 subsets one": (
                lambda r=real, m=made: kernel_distance(r, m, subsets=1),
                6 * 10**6 * size,
            ),
            "moments": (lambda m=made: Moments.of(m), 2 * count * size * size),
            f"Fréchet distance of {both[0].mean.size} features": (lambda b=both: frechet_distance(*b), 0),
        }
        timings = interleave({name: call for name, (call, _) in calls.items()}, rounds=5, warmup=1, budget=20)
        found[f"{count} samples of {size} features"] = {
            name: {"seconds": timings[name].median, "gflops": calls[name][1] / timings[name].median / 1e9}
            for name in calls
        }
    return found


def drawn_masks(count: int = 2000) -> dict[str, float]:
    """Microseconds a mask of 32x32."""
    kinds = (*masks.KINDS, *masks.GROUPS)
    timings = interleave({kind: lambda kind=kind: masks.draw(kind, 32, 32, count) for kind in kinds}, rounds=5)
    return {kind: 1e6 * timing.median / count for kind, timing in timings.items()}


def memory() -> dict[str, Any]:
    """The largest resident set of a process of its own that looks at few samples, and of one that looks at many.

    The network gives its state back and the extractor is a random projection: what is measured is the streaming.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        few, many = (pool.apply(_resident, (count,)) for count in (FEW, MANY))
    return {"features": WIDE, "resident_mb": {str(FEW): few, str(MANY): many}}


def _resident(count: int) -> float:
    shape = NETWORK.shape
    projection = np.random.default_rng(0).normal(size=(int(np.prod(shape)), WIDE)).astype(np.float32)

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        out[...] = x

    flow = Flow(LoopRunner(native.callable_denoiser(predict, shape)), Spec(Own("Same", shape, 10)), "none", "none")
    extractor = Extractor(
        "projection",
        "",
        WIDE,
        lambda images: Seen(images.reshape(len(images), -1).astype(np.float32) @ projection, None),
    )
    look_at(flow, Plan(1), extractor, num_samples=count, seed=0, batch=BATCH)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def text(record: dict[str, Any]) -> str:
    share = record["shares"]
    lines = [
        f"{share['samples']} pictures at 1 step in {share['seconds']:.1f} s, {share['ms_per_image']:.2f} ms each: "
        f"{share['denoiser_share']:.1%} in the denoiser, {share['extractor_share']:.1%} in the extractor, together "
        f"{share['both_shares']:.1%} (wanted: {WANTED:.0%} or more)"
    ]
    for case, rows in record["functions"].items():
        lines.append(case)
        lines += [
            f"  {name:<44}{row['seconds'] * 1e3:9.1f} ms {row['gflops']:8.1f} GFLOP/s" for name, row in rows.items()
        ]
    lines.append("masks: " + ", ".join(f"{kind} {spent:.1f} us" for kind, spent in record["masks"].items()))
    resident = record["memory"]["resident_mb"]
    lines.append(f"resident: {', '.join(f'{mb:.0f} MB after {count} samples' for count, mb in resident.items())}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = str(Path(folder) / "cache")
        spent: list[dict[str, Any]] = []
        seconds = timed(lambda: spent.append(shares(arguments.samples, arguments.threads, Path(folder))))
    record = {
        "shares": spent[0],
        "functions": functions(),
        "masks": drawn_masks(),
        "memory": memory(),
        "facts": {
            "command": "make bench-eval",
            "threads": arguments.threads,
            "seconds_with_export": round(seconds),
            "load_average": os.getloadavg()[0],
            **machine(),
        },
    }
    print(f"{text(record)}\n{json.dumps(record['facts'])}")
    write_file(arguments.out / "evaluation.json", json_bytes(record))


if __name__ == "__main__":
    main()
