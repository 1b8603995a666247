"""A drawing: marks in a box of pixels, painted as SVG for a page, by day and by night, and as PNG for a paper."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from .errors import BackendUnavailable

# By day and at night. Series have Okabe and Ito's hues, which every kind of eye tells apart.
COLOURS = {
    "ink": ("#1b1f24", "#e9ecef"),
    "soft": ("#59636e", "#a2abb5"),
    "rule": ("#d8dde3", "#3a414a"),
    "faint": ("#eef1f4", "#242930"),
    "paper": ("#ffffff", "#14171b"),
    "deep": ("#004f86", "#5db2ec"),  # the largest value of a heat map
    "blue": ("#0072b2", "#5db2ec"),
    "red": ("#cf5a00", "#ff8a45"),
    "green": ("#00875f", "#3fc79a"),
    "pink": ("#b5558c", "#e58fc0"),
    "yellow": ("#b87d00", "#f0b944"),
    "sky": ("#2f9ad6", "#8fd3ff"),
}
SERIES = ("blue", "red", "green", "pink", "yellow", "sky")
FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Segoe UI", "Roboto", "Arial", "Liberation Sans", "DejaVu Sans")
PNG_SCALE, PNG_MARGIN = 2.5, 14.0  # pixels of the file for one of the drawing; of the drawing, around it
_POINT = 0.75  # of a pixel, 72 / 96
_HALF_CAPITAL = 0.36  # of the font's size


@dataclass(frozen=True)
class Shape:
    """Straight lines from point to point; `told` is shown under the mouse."""

    points: Sequence[tuple[float, float]]
    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    opacity: float = 1.0
    dash: tuple[float, ...] = ()
    closed: bool = False
    told: str = ""


@dataclass(frozen=True)
class Words:
    """Text whose capitals are centred at height y; `anchor` is start, middle or end; `angle` is in degrees.

    A halo of paper keeps it apart from the lines under it.
    """

    x: float
    y: float
    text: str
    colour: str = "ink"
    size: float = 13.0
    anchor: str = "start"
    bold: bool = False
    angle: float = 0.0
    halo: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the level text."""
        wide = text_width(self.text, self.size) * (1.07 if self.bold else 1.0)
        left = self.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * wide
        return left, self.y - 0.55 * self.size, left + wide, self.y + 0.55 * self.size


Mark = Shape | Words


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    marks: Sequence[Mark]


def box(left: float, top: float, right: float, bottom: float, **style: Any) -> Shape:
    return Shape(((left, top), (right, top), (right, bottom), (left, bottom)), closed=True, **style)


def text_width(text: str, size: float) -> float:
    """About that of a sans serif font; no font is opened."""
    return size * sum(
        0.30 if letter in "iljtf.,:;'|!()[] " else 0.86 if letter in "mwMW%@" else 0.67 if letter.isupper() else 0.56
        for letter in text
    )


def shortened(text: str, size: float, room: float) -> str:
    """As much of a text as there is room for."""
    if text_width(text, size) <= room:
        return text
    kept = next((end for end in range(len(text), 0, -1) if text_width(text[:end] + "…", size) <= room), 0)
    return text[:kept].rstrip() + "…"


def svg(drawing: Drawing, name: str, style: str = "") -> str:
    """Colours are the page's variables; `name` is what a screen reader says."""
    width, height = _number(drawing.width), _number(drawing.height)
    return (
        f'<svg class="{style}" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{html.escape(name)}">{"".join(map(_svg, drawing.marks))}</svg>'
    )


def _svg(mark: Mark) -> str:
    if isinstance(mark, Words):
        y = mark.y + _HALF_CAPITAL * mark.size
        turned = f' transform="rotate({_number(mark.angle)} {_number(mark.x)} {_number(mark.y)})"' if mark.angle else ""
        more = ";font-weight:600" * mark.bold
        more += ";paint-order:stroke;stroke:var(--paper);stroke-width:3.5;stroke-linejoin:round" * mark.halo
        return (
            f'<text x="{_number(mark.x)}" y="{_number(y)}" font-size="{_number(mark.size)}" text-anchor="{mark.anchor}"'
            f'{turned} style="fill:var(--{mark.colour}){more}">{html.escape(mark.text)}</text>'
        )
    route = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in mark.points) + "Z" * mark.closed
    style = f"fill:var(--{mark.fill});fill-opacity:{_number(mark.opacity)}" if mark.fill else "fill:none"
    if mark.stroke:
        style += f";stroke:var(--{mark.stroke});stroke-width:{_number(mark.width)}"
    if mark.dash:
        style += ";stroke-dasharray:" + " ".join(map(_number, mark.dash))
    told = f"<title>{html.escape(mark.told)}</title>" if mark.told else ""
    return f'<path d="{route}" style="{style}">{told}</path>'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def refuse_missing() -> None:
    """For what draws in the end: to be told of that before the hours of work."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(f'charts need matplotlib ({error}): pip install "pyflow-engine[demo]"') from error


def png(drawing: Drawing) -> bytes:
    """The same by day, on white."""
    refuse_missing()
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    family = next(name for name in FONTS if name in installed)
    wide, tall = ((side + 2 * PNG_MARGIN) / 96 for side in (drawing.width, drawing.height))
    figure = Figure(figsize=(wide, tall), dpi=96 * PNG_SCALE, facecolor=COLOURS["paper"][0])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(
        xlim=(-PNG_MARGIN, drawing.width + PNG_MARGIN),
        ylim=(drawing.height + PNG_MARGIN, -PNG_MARGIN),
    )
    axes.set_axis_off()
    for order, mark in enumerate(drawing.marks):
        _paint(axes, mark, family, order)
    out = BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _paint(axes: Any, mark: Mark, family: str, order: int) -> None:
    from matplotlib.patches import Polygon
    from matplotlib.patheffects import withStroke

    if isinstance(mark, Words):
        halo = [withStroke(linewidth=3.5 * _POINT, foreground=COLOURS["paper"][0])] if mark.halo else None
        anchor = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
        axes.text(
            mark.x,
            mark.y + (0 if mark.angle else _HALF_CAPITAL * mark.size),
            mark.text.replace("$", r"\$"),
            color=COLOURS[mark.colour][0],
            fontsize=mark.size * _POINT,
            ha=anchor,
            va="center_baseline" if mark.angle else "baseline",
            rotation=-mark.angle,
            rotation_mode="anchor",
            fontweight="bold" if mark.bold else "normal",
            fontfamily=family,
            path_effects=halo,
            zorder=order,
        )
        return
    if mark.fill:
        axes.add_patch(
            Polygon(mark.points, facecolor=COLOURS[mark.fill][0], alpha=mark.opacity, linewidth=0, zorder=order)
        )
    if mark.stroke:
        axes.add_patch(
            Polygon(
                mark.points,
                closed=mark.closed,
                fill=False,
                edgecolor=COLOURS[mark.stroke][0],
                linewidth=mark.width * _POINT,
                linestyle=(0, tuple(length / mark.width for length in mark.dash)) if mark.dash else "-",
                joinstyle="round",
                zorder=order,
            )
        )
