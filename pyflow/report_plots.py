"""A report's plots, each in the page and as a PNG beside it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import page
from .axes import colour_of
from .charts import Chart, bars
from .pictures import grid_of
from .plots import Axis, Line, Point, line_plot
from .report_files import Bench, Interval, Row, Times
from .report_groups import Group, Method, machine_of
from .report_words import cells_of, protocol

BARS, CLASSES = 6, 20  # as many as can be told apart
CURVE = 150  # points of a training curve
CELL = 64  # pixels of the screen for a picture
Figures = Callable[[Row], Interval | float | None]
Plan = tuple[Method, Row]


@dataclass(frozen=True)
class Press:
    """Where the PNGs of a group go, and what their names begin with."""

    folder: Path
    prefix: str

    def chart(self, name: str, chart: Chart, caption: str = "") -> str:
        self._path(name).write_bytes(chart.png())
        return page.chart(chart, caption)

    def rows(self, name: str, pictures: np.ndarray, names: Sequence[str], columns: Sequence[str]) -> str:
        scale = max(1, round(CELL / pictures.shape[3]))
        large = pictures.repeat(scale, axis=2).repeat(scale, axis=3)
        grid_of(large.reshape(-1, *large.shape[2:]), pictures.shape[1]).save(self._path(name))
        return page.rows(self._path(name), names, columns)

    def _path(self, name: str) -> Path:
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", name)[:60]
        return self.folder / f"{self.prefix}{plain}.png"


def quality(group: Group, press: Press) -> str:
    """Distance against latency, a plot a machine."""
    shown = []
    for number, machine in enumerate(group.machines):
        lines = [
            Line(method.name, [_point(row.ms_per_image, row.frechet, row.label) for row in method.rows], method.index)
            for method in group.methods
            if method.machine == machine
        ]
        floor = group.about.floor.get("frechet")
        positive = min(point.y for line in lines for point in line.points) > 0 and (floor is None or floor > 0)
        chart = line_plot(
            "Fréchet distance against latency",
            Axis("ms a picture (log); the number at a point is its steps", log=True),
            Axis("lower is better (log)" if positive else "lower is better", log=positive),
            lines,
            level=("held-out real pictures", floor) if floor is not None else None,
            frontier=True,
        )
        name = "quality-latency" + (f"-{number + 1}" if len(group.machines) > 1 else "")
        shown.append(press.chart(name, chart, f"{protocol(group)} Times as the evaluation sampled, on {machine}."))
    return "".join(shown)


def _point(x: float, found: Interval | float, label: str = "") -> Point:
    if isinstance(found, Interval):
        return Point(x, found.value, found.low, found.high, label)
    return Point(x, found, label=label)


def by_steps(group: Group, press: Press, told: Mapping[str, tuple[str, Figures]]) -> str:
    """A small plot for each figure that there is: title, what it is, how a row tells it."""
    steps = tuple(sorted({row.steps for _, row in group.plans}))
    shown = []
    for title, (unit, of) in told.items():
        lines = [
            Line(method.name, points, method.index)
            for method in group.methods
            if (points := [_point(row.steps, found) for row in method.rows if (found := of(row)) is not None])
        ]
        if lines:
            chart = line_plot(title, Axis("steps (log)", log=True, ticks=steps), Axis(unit), lines)
            shown.append(press.chart(title.lower(), chart))
    return page.pair(shown) if shown else ""


def by_class(group: Group, press: Press) -> str:
    """A chart a number of seeds: the classes' distances are of all seeds together, and fall with their number."""
    plans = [(method, row) for method, row in group.plans if row.per_class]
    counts = sorted({method.seeds(row) for method, row in plans})
    return "".join(
        _classes(group, [(method, row) for method, row in plans if method.seeds(row) == count], count, press, name)
        for count in counts
        for name in ["by-class" + f"-{count}-seeds" * (len(counts) > 1)]
    )


def _classes(group: Group, plans: Sequence[Plan], seeds: int, press: Press, name: str) -> str:
    longest = max(plans, key=lambda plan: (plan[1].steps, plan[1].ms_per_image))
    shortest = {method.name: (method, row) for method, row in reversed(plans)}
    shown = sorted(shortest.values(), key=lambda plan: plan[1].frechet.value)[: BARS - 1]
    shown = [plan for plan in plans if plan in shown or plan == longest]
    found = {
        method.called(row): {int(label): figures["frechet"] for label, figures in row.per_class.items()}
        for method, row in shown
    }
    known = sorted({label for line in found.values() for label in line})
    hardest = sorted(known, key=lambda label: -max(line[label].value for line in found.values() if label in line))
    labels = sorted(hardest[:CLASSES])
    names = [group.about.classes[label] for label in labels]
    values = {
        called: [line[label].value if label in line else None for label in labels] for called, line in found.items()
    }
    reaches = {called: [_reach(line.get(label)) for label in labels] for called, line in found.items()}
    colours = [method.index for method, _ in shown]
    chart = bars(names, values, "Distance by class", "Fréchet distance, lower is better", colours, reaches)
    told = "The shortest plan of each method, and the longest plan."
    told += f" The {CLASSES} classes of largest distance, of {len(known)}." if len(known) > CLASSES else ""
    told += f" The {BARS - 1} methods of least distance." if len(shortest) >= BARS else ""
    told += f" Each bar is of the pictures of {seeds} seed{'s' * (seeds > 1)} together"
    told += ", its interval from leaving out each seed in turn (jackknife)." if any(map(any, reaches.values())) else "."
    cells = [[called, *cells_of([line.get(label) for label in labels])] for called, line in found.items()]
    table = page.table(["plan", *names], cells, [colour_of(index) for index in colours])
    return press.chart(name, chart, told) + page.folded("Distances by class in numbers", table)


def _reach(found: Interval | None) -> tuple[float, float] | None:
    """Cut at zero, below which there is no distance."""
    return None if found is None or found.low is None or found.high is None else (max(0.0, found.low), found.high)


def training(group: Group, press: Press) -> str:
    shown = []
    for method in group.methods:
        curve = next((one.training for one in method.files if one.training), ())
        if curve:
            step = math.ceil(len(curve) / CURVE)
            parts = [curve[at : at + step] for at in range(0, len(curve), step)]
            points = [
                Point(float(np.mean([one.step for one in part])), float(np.mean([one.loss for one in part])))
                for part in parts
            ]
            log = min(point.y for point in points) > 0
            axis = Axis(f"loss of {method.files[0].method}{' (log)' * log}", log=log)
            chart = line_plot(method.name, Axis("step"), axis, [Line("", points, method.index)], symbols=False)
            shown.append(press.chart(f"training-{method.index + 1}-{method.name}", chart))
    return page.pair(shown) + page.text("Losses of different objectives are no measure of each other.") if shown else ""


def latency(benches: Sequence[Bench], press: Press) -> str:
    """Times alone, a plot a machine."""
    shown = []
    for number, machine in enumerate(dict.fromkeys(map(machine_of, benches))):
        own = [bench for bench in benches if machine_of(bench) == machine]
        cases = [(bench, batch) for bench in own for batch in sorted({row.batch for row in bench.rows})]
        lines = [
            Line(
                f"{bench.name}, batch {batch}",
                [Point(row.steps, row.ms_per_image) for row in _of_batch(bench, batch)],
                index,
            )
            for index, (bench, batch) in enumerate(cases)
        ]
        steps = tuple(sorted({row.steps for bench in own for row in bench.rows}))
        chart = line_plot(
            "Latency by steps", Axis("steps (log)", log=True, ticks=steps), Axis("ms a picture (log)", log=True), lines
        )
        rows = [(bench, index, row) for index, (bench, batch) in enumerate(cases) for row in _of_batch(bench, batch)]
        columns = [
            cells_of([getattr(row, name) for _, _, row in rows]) for name in ("median_ms", "p99_ms", "ms_per_image")
        ]
        cells = [
            [bench.name, str(row.batch), str(row.steps), *one] for (bench, _, row), one in zip(rows, zip(*columns))
        ]
        heads = ["network", "batch", "steps", "median, ms", "p99, ms", "ms a picture"]
        shown.append(
            press.chart(f"latency-{number + 1}", chart, f"Medians of interleaved rounds on {machine}.")
            + page.table(heads, cells, [colour_of(index) for _, index, _ in rows])
        )
    return "".join(shown)


def _of_batch(bench: Bench, batch: int) -> list[Times]:
    return sorted((row for row in bench.rows if row.batch == batch), key=lambda row: row.steps)
