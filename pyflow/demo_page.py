"""The demo's page: sample grids, the plot of quality against latency, the table, and results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .artefact import json_bytes, publish
from .axes import colour_of
from .charts import Chart
from .page import chart, document, figures, plan_name, rows, table, text
from .pictures import grid_of
from .plots import Axis, Line, Point, line_plot

if TYPE_CHECKING:
    import PIL.Image

COLUMNS = 10


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    method: str
    steps: int
    ms_per_image: float
    images_per_second: float
    first_image_ms: float  # batch 1
    distance: float
    label_accuracy: float
    speedup: float  # against the teacher's longest plan


@dataclass(frozen=True)
class Report:
    """What a run found. `pictures` maps (method, steps) to uint8 NHWC pictures of the same seeds and labels."""

    title: str
    lead: str
    measures: Sequence[Measure]
    floor: float  # the distance of real, held-out pictures from real ones
    pictures: Mapping[tuple[str, int], np.ndarray]
    protocol: str
    facts: Mapping[str, object]


def write(report: Report, folder: Path) -> None:
    """Publish the folder: index.html (self-contained), the PNGs it shows, and results.json."""
    images = {
        f"{method}-{steps}-steps.png": grid_of(pictures, COLUMNS, scale=3)
        for (method, steps), pictures in report.pictures.items()
    }
    images["compare.png"] = _compare(report)
    plot = _plot(report)
    with publish(folder) as fresh:
        for name, image in images.items():
            image.save(fresh / name)
        (fresh / "quality-latency.png").write_bytes(plot.png())
        results = {"measures": [asdict(measure) for measure in report.measures], "floor": report.floor}
        (fresh / "results.json").write_bytes(
            json_bytes({**results, "protocol": report.protocol, "facts": dict(report.facts)})
        )
        (fresh / "index.html").write_text(_page(report, plot, fresh), encoding="utf-8")


def summary(measures: Sequence[Measure]) -> str:
    """The table as text, for a terminal."""
    names = ("ms/image", "images/s", "first, ms", "distance", "label acc.", "speed-up")
    head = f"{'method':8} {'steps':>5} " + " ".join(f"{name:>10}" for name in names)
    lines = [
        f"{m.method:8} {m.steps:5d} {m.ms_per_image:10.2f} {m.images_per_second:10.1f} {m.first_image_ms:10.2f} "
        f"{m.distance:10.3f} {m.label_accuracy:10.1%} {m.speedup:9.1f}x"
        for m in measures
    ]
    return "\n".join([head, *lines])


def _page(report: Report, plot: Chart, folder: Path) -> str:
    heads = ("method", "steps", "ms/image", "images/s", "first image, ms", "distance", "label accuracy", "speed-up")
    lines = [
        [
            *(m.method, str(m.steps)),
            *(f"{m.ms_per_image:.2f}", f"{m.images_per_second:.0f}", f"{m.first_image_ms:.2f}"),
            *(f"{m.distance:.3f}", f"{m.label_accuracy:.1%}", f"{m.speedup:.1f}×"),
        ]
        for m in report.measures
    ]
    methods = _methods(report)
    keys = [colour_of(methods.index(m.method)) for m in report.measures]
    grids = [(folder / f"{method}-{steps}-steps.png", plan_name(method, steps)) for method, steps in report.pictures]
    return document(
        report.title,
        report.lead,
        {
            "The same seeds, fewer and fewer steps": rows(
                folder / "compare.png", [plan_name(*key) for key in report.pictures]
            ),
            "Quality against latency": chart(plot),
            "The table": table(heads, lines, keys)
            + text(f"{report.protocol} Held-out real pictures are at distance {report.floor:.3f}."),
            "Samples, uncurated": figures(grids),
        },
        report.facts,
    )


def _methods(report: Report) -> list[str]:
    return list(dict.fromkeys(measure.method for measure in report.measures))


def _compare(report: Report) -> "PIL.Image.Image":
    """One row a method and step count, the same ten seeds down every column."""
    return grid_of(np.concatenate([pictures[:COLUMNS] for pictures in report.pictures.values()]), COLUMNS, scale=4)


def _plot(report: Report) -> Chart:
    lines = [
        Line(method, [Point(m.ms_per_image, m.distance, label=str(m.steps)) for m in own], index)
        for index, method in enumerate(_methods(report))
        if (own := [measure for measure in report.measures if measure.method == method])
    ]
    x = Axis("ms a picture (log); the number at a point is its steps", log=True)
    y = Axis("lower is better (log)", log=True)
    floor = ("held-out real pictures", report.floor)
    return line_plot("Fréchet distance against latency", x, y, lines, level=floor, frontier=True)
