"""The checkerboard table: every method on one law of points in the plane, judged at 1 to 16 network calls.

The judge is KL(p||q) between histograms of fresh points of the law and of generated ones. Every run lies in a folder of
its own; a second call reuses what is finished and resumes what is not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoint, commands, drawing, page
from .artefact import json_bytes, publish
from .errors import InvalidInput
from .loading import load
from .metrics import histogram_divergence
from .sampler import Flow
from .timing import machine
from .training.data import checkerboard_points
from .training.recipes import TEACHERS

DATA = "checkerboard"
STEPS = (1, 2, 4, 8, 16)
METHODS = ("lsd", "psd-midpoint", "esd", "meanflow", "cfm", "reflow", "lines", "naive")
POINTS, CALL = 100_000, 5_000  # judged, and sampled in one call
PAIRS_A_POINT, PAIRS_STEPS, PAIRS_SEED = 4, 32, 2**31
REAL_SEED, OTHER_SEED, SAMPLES_SEED = 2021, 2022, 0
SHOWN = 6000
# What a public implementation of the flow maps reports for a network of this size.
PUBLIC = {"lsd": (0.4576, 0.4298, 0.3515, 0.2651, 0.2508), "psd": (1.5893, 0.8930, 0.5197, 0.3219, 0.2671)}

Points = Mapping[tuple[str, int], np.ndarray]
Facts = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """KL(p||q) of each method at each of STEPS, and that of two sets of the law's own points: the least there is."""

    divergence: Mapping[str, tuple[float, ...]]
    floor: float

    def __str__(self) -> str:
        return "\n".join(
            "".join(f"{cell:>10}" if i else f"{cell:20}" for i, cell in enumerate(line)) for line in self.lines
        )

    @property
    def lines(self) -> list[tuple[str, ...]]:
        rows = {**self.divergence, **{f"public {name}": values for name, values in PUBLIC.items()}}
        head = ("KL(p||q) at steps", *map(str, STEPS))
        told = [(name, *(f"{value:.4f}" for value in values)) for name, values in rows.items()]
        return [head, *told, ("the law itself", *[f"{self.floor:.4f}"] * len(STEPS))]


def run(folder: Path, report_folder: Path, *, points: int = POINTS, **changes: Any) -> Table:
    """Train every method by its recipe with these `changes`, sample it, judge it and publish the report."""
    if points < 2:
        raise InvalidInput(f"points is {points}; expected 2 or more to judge by")
    drawing.refuse_missing()
    with _wide_products():
        for name in METHODS:
            train(name, folder, points=points, **changes)
    command = "pyflow report checkerboard" + "".join(f" --{field} {value}" for field, value in changes.items())
    return judge({name: folder / name for name in METHODS}, report_folder, points=points, command=command)


def judge(runs: Mapping[str, Path], report_folder: Path, *, points: int = POINTS, command: str) -> Table:
    """Sample the checkpoints of `runs` and publish the report."""
    drawing.refuse_missing()
    real, other = (law(points, seed) for seed in (REAL_SEED, OTHER_SEED))
    made: dict[tuple[str, int], np.ndarray] = {}
    with _wide_products():
        for name in tqdm(runs, desc="sampled", unit="method"):
            flow = load(runs[name])
            made |= {(name, steps): sample(flow, points, steps) for steps in STEPS}
    found = Table(
        {name: tuple(histogram_divergence(real, made[name, steps]) for steps in STEPS) for name in runs},
        histogram_divergence(real, other),
    )
    recipes = {name: checkpoint.load_spec(run).provenance for name, run in runs.items()}
    _write(found, real, made, report_folder, recipes, {"command": command, **machine()})
    return found


def train(name: str, folder: Path, *, points: int = POINTS, **changes: Any) -> None:
    """One method's run in `folder`; a student's teacher and pairs are made first."""
    if name in TEACHERS:
        commands.train_teacher(name, DATA, folder / name, **changes)
        return
    teacher, pairs = folder / "cfm", folder / "pairs"
    train("cfm", folder, **changes)
    plan: dict[str, Any] = {"steps": PAIRS_STEPS, "guidance": 1.0, "seed": PAIRS_SEED}
    commands.make_pairs(teacher, pairs, count=PAIRS_A_POINT * points, shard=CALL, batch=CALL, **plan)
    commands.distil(name, teacher, pairs, folder / name, **changes)


def law(count: int, seed: int) -> np.ndarray:
    return checkerboard_points(count, torch.Generator().manual_seed(seed)).numpy()


def sample(flow: Flow, count: int, steps: int) -> np.ndarray:
    starts = range(0, count, CALL)
    parts = [flow.sample(min(CALL, count - at), steps=steps, seed=SAMPLES_SEED, first=at).states for at in starts]
    return np.concatenate(parts)


@contextmanager
def _wide_products() -> Iterator[None]:
    """Products by oneDNN. On an AMD core with AVX-512 it multiplies these matrices at 250 Gflop/s and MKL, which serves
    "highest", at 120: a step of lsd takes 28 ms, not 49. Where the processor has tiles of bfloat16, they are used.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _write(
    found: Table, real: np.ndarray, made: Points, report_folder: Path, recipes: Mapping[str, Any], facts: Facts
) -> None:
    """Publish index.html (self-contained), the scatter plots it shows, and results.json."""
    trained = ", ".join(f"{name} {recipe['steps']:,}" for name, recipe in recipes.items())
    protocol = (
        f"KL(p||q) of histograms of 60x60 cells over -2.5..2.5, {len(real):,} points each, 1e-8 added to each cell. p "
        "are fresh points of the law; q come from the C++ loop, from the same noise for every method. Two sets of the "
        f"law's own points are {found.floor:.4f} apart: nothing comes below that. Steps of training: {trained}."
    )
    results = {
        "steps": STEPS,
        "divergence": found.divergence,
        "floor": found.floor,
        "public": PUBLIC,
        "protocol": protocol,
        "facts": facts,
        "recipes": recipes,
    }
    with publish(report_folder) as fresh:
        (fresh / "scatter.png").write_bytes(_scatter(found, real, made))
        (fresh / "results.json").write_bytes(json_bytes(results))
        head, *lines = found.lines
        sections = {
            "The table": page.table(head, lines) + page.text(protocol),
            "The samples": page.picture(fresh / "scatter.png", "a row a method, a column a number of steps"),
        }
        lead = "Every method of this project on points of the same law, with networks of the same size."
        (fresh / "index.html").write_text(page.document("A checkerboard", lead, sections, facts), encoding="utf-8")


def _scatter(found: Table, real: np.ndarray, made: Points) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, columns = len(found.divergence), len(STEPS) + 1
    figure, grid = pyplot.subplots(rows, columns, figsize=(1.9 * columns, 2.0 * rows), dpi=100, squeeze=False)
    for row, name in zip(grid, found.divergence):
        shown = [(real, "the law")]
        shown += [(made[name, n], f"{name}, {n}: {kl:.3f}") for n, kl in zip(STEPS, found.divergence[name])]
        for axes, (points, title) in zip(row, shown):
            axes.scatter(*points[:SHOWN].T, s=0.6, linewidths=0, color="#1c7ed6")
            axes.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xticks=[], yticks=[])
            axes.set_title(title, fontsize=8)
    figure.tight_layout()
    out = BytesIO()
    figure.savefig(out)
    pyplot.close(figure)
    return out.getvalue()
