"""The report of a run: sample grids, the plot of quality against latency, the table, and one HTML page of them all."""

from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .artefact import json_bytes, publish
from .errors import BackendUnavailable
from .page import Measure, Report, page
from .pictures import grid_of

if TYPE_CHECKING:
    import PIL.Image

COLOURS = {"teacher": "#8a8f98", "student": "#d9480f"}
COLUMNS = 10


def write(report: Report, folder: Path) -> None:
    """Publish the folder: index.html (self-contained), the PNGs it shows, and results.json."""
    images = {
        f"{method}-{steps}-steps.png": grid_of(pictures, COLUMNS, scale=3)
        for (method, steps), pictures in report.pictures.items()
    }
    images["compare.png"] = _compare(report)
    with publish(folder) as fresh:
        for name, image in images.items():
            image.save(fresh / name)
        (fresh / "quality-latency.png").write_bytes(_plot(report))
        results = {"measures": [asdict(measure) for measure in report.measures], "floor": report.floor}
        (fresh / "results.json").write_bytes(
            json_bytes({**results, "protocol": report.protocol, "facts": dict(report.facts)})
        )
        (fresh / "index.html").write_text(page(report, fresh), encoding="utf-8")


def table(measures: Sequence[Measure]) -> str:
    """The table as text, for a terminal."""
    names = ("ms/image", "images/s", "first, ms", "distance", "label acc.", "speed-up")
    head = f"{'method':8} {'steps':>5} " + " ".join(f"{name:>10}" for name in names)
    lines = [
        f"{m.method:8} {m.steps:5d} {m.ms_per_image:10.2f} {m.images_per_second:10.1f} {m.first_image_ms:10.2f} "
        f"{m.distance:10.3f} {m.label_accuracy:10.1%} {m.speedup:9.1f}x"
        for m in measures
    ]
    return "\n".join([head, *lines])


def _compare(report: Report) -> "PIL.Image.Image":
    """One row a method and step count, the same ten seeds down every column."""
    rows = [pictures[:COLUMNS] for pictures in report.pictures.values()]
    return grid_of(np.concatenate(rows), COLUMNS, scale=4)


def pyplot() -> Any:
    """matplotlib's, which draws on no screen here."""
    try:
        import matplotlib
    except ImportError as error:
        raise BackendUnavailable(f'the plot needs matplotlib ({error}): pip install "pyflow-engine[demo]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _plot(report: Report) -> bytes:
    figure, axes = pyplot().subplots(figsize=(7.2, 4.4), dpi=150)
    for method in dict.fromkeys(measure.method for measure in report.measures):
        own = [measure for measure in report.measures if measure.method == method]
        xs, ys = [m.ms_per_image for m in own], [m.distance for m in own]
        axes.plot(xs, ys, "o-", color=COLOURS.get(method, "#1c7ed6"), label=method, linewidth=2, markersize=7)
        above = method == "teacher"  # the other methods' labels go below, where no curve runs
        for m in own:
            axes.annotate(
                f"{m.steps} step{'s' * (m.steps > 1)}",
                (m.ms_per_image, m.distance),
                xytext=(0, 11 if above else -19),
                textcoords="offset points",
                ha="center",
            )
    axes.axhline(report.floor, color="#2b8a3e", linestyle=":", label="held-out real pictures")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="latency, ms an image (log)",
        ylabel="Fréchet distance (log), lower is better",
    )
    axes.margins(x=0.15, y=0.12)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    return png_of(figure)


def png_of(figure: Any) -> bytes:
    """A matplotlib figure's picture; the figure is closed."""
    out = BytesIO()
    figure.savefig(out)
    pyplot().close(figure)
    return out.getvalue()
