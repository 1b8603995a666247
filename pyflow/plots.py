"""A plot of lines: straight or logarithmic axes, intervals as bars, a label at a point where it hides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import PLAIN, SMALL, Scale, colour_of, head, key, legend, number, spanning, symbol
from .charts import NARROW, Chart, rules
from .drawing import Drawing, Mark, Shape, Words, text_width
from .errors import InvalidInput

Place = tuple[float, float]
Box = tuple[float, float, float, float]
_AROUND = (
    (0, -15),
    (0, 16),
    (13, -9),
    (-13, -9),
    (13, 10),
    (-13, 10),
    (16, 0),
    (-16, 0),
)  # a label's places, in pixels


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float | None = None  # of y's interval
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Line:
    """`colour` numbers the line's colour and symbol."""

    name: str
    points: Sequence[Point]
    colour: int


@dataclass(frozen=True)
class Axis:
    """`ticks`, where there are some, are the only ones, and the axis holds all of them."""

    label: str
    log: bool = False
    ticks: tuple[float, ...] = ()


def line_plot(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    *,
    level: tuple[str, float] | None = None,
    frontier: bool = False,
    symbols: bool = True,
) -> Chart:
    """`level` is a named value of y; the `frontier` is what no point has beaten in both x and y, least being best."""
    points = [point for line in lines for point in line.points]
    if not points:
        raise InvalidInput(f"{title} has no points; expected one or more")
    heights = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    heights = [value for value in heights if not y.log or value > 0] + ([level[1]] if level else [])

    def draw(width: float) -> Drawing:
        entries: list[tuple[str, Sequence[Mark]]] = [
            (line.name, key(line.colour) if symbols else key(line.colour)[:1]) for line in lines if line.name
        ]
        if level:
            entries.append((level[0], [Shape(((-9, 0), (9, 0)), "ink", width=1.5, dash=(1.5, 3))]))
        if frontier:
            entries.append(("frontier", [Shape(((-9, 0), (9, 0)), "soft", width=1.2, dash=(6, 4))]))
        names, top = legend(entries, 0, 54, width)
        tall = 360.0 if width > NARROW else 270.0
        up = spanning(heights, top + tall, top, log=y.log)
        marks: list[Mark] = [*head(title, y.label, width), *names]
        left = rules(marks, up, width)
        along = spanning([*x.ticks, *(point.x for point in points)], left + 8, width - 8, log=x.log)
        marks += _feet(x, along, up.start, left, width)
        if level:
            marks.append(Shape(((left, up.at(level[1])), (width, up.at(level[1]))), "ink", width=1.5, dash=(1.5, 3)))
        stairs = _stairs(points, along, up, width) if frontier else []
        if stairs:
            marks.append(Shape(stairs, "soft", width=1.2, dash=(6, 4)))
        placed = [[(along.at(point.x), up.at(point.y)) for point in line.points] for line in lines]
        spans = [_interval(point, along, up) for line in lines for point in line.points]
        for line, at in zip(lines, placed):
            marks.append(Shape(at, colour_of(line.colour), width=2.0))
            marks += [
                Shape(part, colour_of(line.colour), width=1.4)
                for point in line.points
                for part in _interval(point, along, up)
            ]
        if symbols:
            for line, at in zip(lines, placed):
                marks += [
                    symbol(line.colour, colour_of(line.colour), x=place[0], y=place[1], told=_told(line, point, x, y))
                    for point, place in zip(line.points, at)
                ]
        hidden = [stairs, *placed, *(part for span in spans for part in span)]
        marks += _labels(lines, placed, hidden, (left, top - 10, width, up.start))
        return Drawing(width, up.start + 46, marks)

    return Chart(title, draw)


def _feet(x: Axis, along: Scale, bottom: float, left: float, width: float) -> list[Mark]:
    """The axis of x: its line, ticks that have room, and its label."""
    marks: list[Mark] = [Shape(((left, bottom), (width, bottom)), "soft")]
    free = -1e9
    for tick in x.ticks or along.ticks():
        at, half = along.at(tick), text_width(number(tick), SMALL) / 2
        if at - half > free:
            marks.append(Shape(((at, bottom), (at, bottom + 5)), "soft"))
            marks.append(Words(at, bottom + 15, number(tick), "soft", SMALL, "middle"))
            free = at + half + 5
    marks.append(Words((left + width) / 2, bottom + 37, x.label, "soft", PLAIN, "middle"))
    return marks


def _interval(point: Point, along: Scale, up: Scale) -> list[Sequence[Place]]:
    """The bar of a point's interval and its two ends, cut where the axis ends."""
    if point.low is None or point.high is None:
        return []
    x, low, high = along.at(point.x), up.at(max(point.low, up.low)), up.at(min(point.high, up.high))
    return [((x, low), (x, high)), ((x - 4, low), (x + 4, low)), ((x - 4, high), (x + 4, high))]


def _stairs(points: Sequence[Point], along: Scale, up: Scale, right: float) -> list[Place]:
    stairs: list[Place] = []
    for x, y in frontier_of([(point.x, point.y) for point in points]):
        stairs += [(along.at(x), stairs[-1][1] if stairs else up.at(y)), (along.at(x), up.at(y))]
    return [*stairs, (right, stairs[-1][1])]


def frontier_of(points: Sequence[Place]) -> list[Place]:
    """The points that no other beats in x and y, by x."""
    best: list[Place] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _told(line: Line, point: Point, x: Axis, y: Axis) -> str:
    interval = "" if point.low is None else f" ({point.low:.4g} to {point.high:.4g})"
    return f"{line.name} {point.label}\n{y.label}: {point.y:.4g}{interval}\n{x.label}: {point.x:.4g}"


def _labels(
    lines: Sequence[Line], placed: Sequence[Sequence[Place]], drawn: Sequence[Sequence[Place]], inside: Box
) -> list[Mark]:
    """Each label at the place around its point where it hides least of what is `drawn` and of the labels before it."""
    dots = [dot for route in drawn for dot in _dotted(route)]
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for at in placed for x, y in at]
    marks: list[Mark] = []
    for line, at in zip(lines, placed):
        for point, (x, y) in zip(line.points, at):
            if not point.label:
                continue
            options = [
                Words(x + dx, y + dy, point.label, colour_of(line.colour), SMALL, _anchor(dx), bold=True, halo=True)
                for dx, dy in _AROUND
            ]
            best = min(options, key=lambda words: _hidden(words.box, dots, taken, inside))
            taken.append(best.box)
            marks.append(best)
    return marks


def _anchor(across: float) -> str:
    return "middle" if across == 0 else "start" if across > 0 else "end"


def _dotted(route: Sequence[Place], step: float = 3.0) -> list[Place]:
    dots = []
    for (x, y), (to_x, to_y) in zip(route, route[1:]):
        parts = max(1, int(max(abs(to_x - x), abs(to_y - y)) / step))
        dots += [(x + (to_x - x) * k / parts, y + (to_y - y) * k / parts) for k in range(parts + 1)]
    return dots


def _hidden(box: Box, dots: Sequence[Place], taken: Sequence[Box], inside: Box) -> float:
    left, top, right, bottom = box
    shared = sum(
        max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(bottom, other[3]) - max(top, other[1]))
        for other in taken
    )
    out = max(0.0, inside[0] - left) + max(0.0, inside[1] - top)
    out += max(0.0, right - inside[2]) + max(0.0, bottom - inside[3])
    return 3 * sum(left <= x <= right and top <= y <= bottom for x, y in dots) + shared + 50 * out
