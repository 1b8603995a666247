"""Charts as a paper prints them, drawn anew for each width, so that a phone's letters are as large as a desktop's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .axes import (
    LONGEST,
    PLAIN,
    SMALL,
    Scale,
    colour_of,
    head,
    key,
    legend,
    moved,
    names_along,
    number,
    refuse_bad,
    round_numbers,
    spanning,
    symbol,
)
from .drawing import Drawing, Mark, Shape, Words, box, png, shortened, svg, text_width
from .errors import InvalidInput

WIDE, NARROW = 880.0, 350.0  # pixels: a desktop's column and a phone's
Reach = tuple[float, float]  # from low to high


@dataclass(frozen=True)
class Chart:
    """`draw` makes the drawing for a width."""

    title: str
    draw: Callable[[float], Drawing]

    def svg(self) -> str:
        """For a page, whose style shows one of the two widths."""
        return svg(self.draw(WIDE), self.title, "wide") + svg(self.draw(NARROW), self.title, "narrow")

    def png(self) -> bytes:
        """The wide one, for a paper."""
        return png(self.draw(WIDE))


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    title: str,
    unit: str,
    palette: Sequence[int] = (),
    reaches: Mapping[str, Sequence[Reach | None]] | None = None,
) -> Chart:
    """A group of bars a name of `groups`, one a series, from zero; None leaves a gap.

    `palette` numbers the colours; one that comes again is lighter. `reaches` are intervals, in the places of `series`.
    """
    _refuse_misfit([*series.values()], len(series), len(groups), title)
    every = [value for line in series.values() for value in line if value is not None]
    spans = reaches or {}
    if spans:
        _refuse_misfit([*spans.values()], len(spans), len(groups), title)
    every += [end for line in spans.values() for reach in line if reach for end in reach]
    refuse_bad(every, title)
    numbers = [*(palette or range(len(series)))]
    fills = [(colour_of(one), 0.45 if one in numbers[:at] else 1.0) for at, one in enumerate(numbers)]

    def draw(width: float) -> Drawing:
        keys: list[tuple[str, Sequence[Mark]]] = [
            (name, [box(-6, -6, 6, 6, fill=fill, opacity=opacity)]) for name, (fill, opacity) in zip(series, fills)
        ]
        names, top = legend(keys, 0, 52, width)
        tall = 240.0 if width > NARROW else 190.0
        up = spanning([0.0, *every], top + tall, top + 8, zero=True)
        marks: list[Mark] = [*head(title, unit, width), *names]
        left = rules(marks, up, width)
        group = (width - left) / len(groups)
        thick = min(34.0, 0.78 * group / len(series))
        for place, name in enumerate(groups):
            begin = left + (place + 0.5) * group - thick * len(series) / 2
            for at, (label, line) in enumerate(series.items()):
                value = line[place]
                if value is not None:
                    x, gap = begin + at * thick, min(1.0, thick / 8)
                    fill, opacity = fills[at]
                    reach = spans[label][place] if label in spans else None
                    told = f"{label}, {name}: {value:.4g}" + (f" ({reach[0]:.4g} to {reach[1]:.4g})" if reach else "")
                    inside = (x + gap, up.at(value), x + thick - gap, up.at(0))
                    marks.append(box(*inside, fill=fill, opacity=opacity, told=told))
                    if reach:
                        marks += _whisker(x + thick / 2, up.at(reach[0]), up.at(reach[1]), min(4.0, 0.3 * thick))
        below, high = names_along(groups, left, group, top + tall, above=False)
        return Drawing(width, top + tall + high + 4, [*marks, *below])

    return Chart(title, draw)


def _whisker(x: float, low: float, high: float, half: float) -> list[Mark]:
    """An interval on a bar, in ink, which is seen on every colour and above it."""
    parts = ((x, low), (x, high)), ((x - half, low), (x + half, low)), ((x - half, high), (x + half, high))
    return [Shape(part, "ink", width=1.2) for part in parts]


def rules(marks: list[Mark], up: Scale, width: float) -> float:
    """Level lines at the ticks of `up`, with their numbers before them; where the lines begin."""
    ticks = up.ticks()
    left = 10 + max(text_width(number(tick), SMALL) for tick in ticks)
    for tick in ticks:
        y = up.at(tick)
        marks.append(Shape(((left, y), (width, y)), "soft" if tick == 0 else "rule"))
        marks.append(Words(left - 8, y, number(tick), "soft", SMALL, "end"))
    return left


def heat_map(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str, unit: str
) -> Chart:
    """A cell a value, the deeper the larger; `values` holds a list a row."""
    _refuse_misfit(values, len(rows), len(columns), title)
    every = [value for line in values for value in line]
    refuse_bad(every, title)
    low, high = min(every), max(every)
    largest = max(map(abs, every)) or 1.0
    places = min(6, max(0, 2 - math.floor(math.log10(largest))))

    def draw(width: float) -> Drawing:
        before = [shortened(name, PLAIN, LONGEST) for name in rows]
        left = 12 + max(text_width(name, PLAIN) for name in before)
        cell = min(96.0, (width - left - 14) / len(columns))
        names, rise = names_along(columns, left, cell, 0, above=True)
        top = (42.0 if unit else 22.0) + rise
        tall = 34.0
        marks: list[Mark] = [*head(title, unit, width), *(moved(name, 0, top) for name in names)]
        for line, name in enumerate(rows):
            middle = top + (line + 0.5) * tall
            marks.append(Words(left - 10, middle, before[line], "ink", PLAIN, "end"))
            for place, value in enumerate(values[line]):
                depth = 0.06 + 0.94 * ((value - low) / (high - low) if high > low else 0.5)
                x = left + place * cell
                told = f"{name}, {columns[place]}: {value:.4g} {unit}"
                inside = (x + 1, middle - tall / 2 + 1, x + cell - 1, middle + tall / 2 - 1)
                marks.append(box(*inside, fill="deep", opacity=depth, told=told))
                shown = f"{value:.{places}f}"
                if text_width(shown, SMALL) < cell - 4:
                    colour = "paper" if depth > 0.66 else "ink"
                    marks.append(Words(x + cell / 2, middle, shown, colour, SMALL, "middle"))
        return Drawing(left + len(columns) * cell + 14, top + len(rows) * tall + 4, marks)

    return Chart(title, draw)


def radar(axes: Sequence[str], series: Mapping[str, Sequence[float]], title: str, unit: str = "") -> Chart:
    """A spoke an axis, all of one scale with zero in the middle; a closed line a series."""
    if len(axes) < 3:
        raise InvalidInput(f"{title} has {len(axes)} axes; expected three or more, fewer are bars")
    _refuse_misfit([*series.values()], len(series), len(axes), title)
    every = [value for line in series.values() for value in line]
    refuse_bad(every, title)
    if min(every) < 0:
        raise InvalidInput(f"{title} holds {min(every)}; expected values of zero or more, a spoke begins at zero")
    ring = round_numbers(0, max(every) or 1.0, 5)[1]
    rings = [ring * (k + 1) for k in range(math.ceil((max(every) or 1.0) / ring - 1e-9))]
    outer = rings[-1]

    def draw(width: float) -> Drawing:
        wide = min(width, 560.0)
        spoken = [shortened(name, PLAIN, wide / 4) for name in axes]
        side = max(text_width(name, PLAIN) for name in spoken) + 12
        radius = max(60.0, min(180.0, wide / 2 - side))
        names, below = legend([(name, key(at)) for at, name in enumerate(series)], 0, 50, wide)
        middle = wide / 2, below + 14 + radius

        def at(spoke: int, value: float) -> tuple[float, float]:
            angle, far = 2 * math.pi * spoke / len(axes), radius * value / outer
            return middle[0] + far * math.sin(angle), middle[1] - far * math.cos(angle)

        marks: list[Mark] = [*head(title, unit, width), *names]
        spokes = range(len(axes))
        marks += [Shape([at(spoke, ring) for spoke in spokes], "rule", closed=True) for ring in rings]
        marks += [Shape((middle, at(spoke, outer)), "rule") for spoke in spokes]
        for index, (name, line) in enumerate(series.items()):
            colour, points = colour_of(index), [at(spoke, value) for spoke, value in enumerate(line)]
            marks.append(Shape(points, colour, colour, width=2.2, opacity=0.10, closed=True))
            for spoke, (x, y) in enumerate(points):
                told = f"{name}, {axes[spoke]}: {line[spoke]:.4g} {unit}"
                marks.append(symbol(index, colour, x=x, y=y, told=told))
        for ring in rings:
            (x, y), (to_x, to_y) = at(0, ring), at(1, ring)
            marks.append(Words((x + to_x) / 2, (y + to_y) / 2, number(ring), "soft", SMALL - 1, "middle", halo=True))
        for spoke, name in enumerate(spoken):
            across = math.sin(2 * math.pi * spoke / len(axes))
            x, y = at(spoke, outer * (1 + 15 / radius))
            anchor = "middle" if abs(across) < 0.1 else "start" if across > 0 else "end"
            marks.append(Words(x, y, name, "ink", PLAIN, anchor))
        return Drawing(wide, middle[1] + radius + 26, marks)

    return Chart(title, draw)


def _refuse_misfit(values: Sequence[Sequence[float | Reach | None]], rows: int, columns: int, title: str) -> None:
    came = [len(line) for line in values]
    if not rows or not columns or came != [columns] * rows:
        raise InvalidInput(f"{title} has lines of {came} values; expected {rows} of {columns}, and one or more of each")
