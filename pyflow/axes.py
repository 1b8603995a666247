"""What charts share: a scale from values to pixels, its ticks, and the legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .drawing import SERIES, Mark, Shape, Words, shortened, text_width
from .errors import InvalidInput

SMALL, PLAIN, HEAD = 12.0, 13.0, 15.0  # sizes of text
LONGEST = 130.0  # of a name along an axis


# (corners, where the first is in turns, radius): circle, square, diamond, triangles up and down, hexagon
_SHAPES = ((24, 0.0, 5.0), (4, 0.125, 5.8), (4, 0.0, 6.4), (3, 0.25, 6.6), (3, 0.75, 6.6), (6, 0.0, 5.6))


@dataclass(frozen=True)
class Scale:
    """`low` stands at pixel `start` and `high` at `end`, on a straight or a logarithmic way between them."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InvalidInput(f"an axis goes from {self.low} to {self.high}; expected two finite numbers, low to high")
        if self.log and self.low <= 0:
            raise InvalidInput(f"a logarithmic axis begins at {self.low}; expected more than 0")

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Round numbers inside: on a logarithmic axis decades, or 1-2-5 where they would be fewer than three."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [d * 10.0**k for k in decades for d in digits if self.low <= d * 10.0**k <= self.high]
                if 3 <= len(found) <= most:
                    return found
        return round_numbers(self.low, self.high, most)


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= least)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def spanning(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all `values` with room at both ends; from `zero`, or where half of it would be empty."""
    refuse_bad(values, "a chart")
    low, high = min(values), max(values)
    if log:
        if low <= 0:
            raise InvalidInput(f"a logarithmic axis was given {low}; expected values above 0")
        room = max((high / low) ** 0.06, 1.05)
        return Scale(low / room, high * room, start, end, log=True)
    if zero or 0 < low < high / 2:
        low = min(low, 0.0)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - room * (low != 0), high + room, start, end)


def refuse_bad(values: Sequence[float], what: str) -> None:
    if not values:
        raise InvalidInput(f"{what} has no values; expected one or more")
    for value in values:
        if not math.isfinite(value):
            raise InvalidInput(f"{what} holds {value}; expected finite numbers")


def number(value: float) -> str:
    """As it stands at a tick: 0.25, 10, 1,000."""
    return f"{value:,.7g}" if value == 0 or 1e-4 <= abs(value) < 1e7 else f"{value:.0e}".replace("e-0", "e-")


def legend(
    entries: Sequence[tuple[str, Sequence[Mark]]], left: float, top: float, right: float
) -> tuple[list[Mark], float]:
    """Names in lines from `left` to `right`, each behind its key, which is drawn around (0, 0); and where they end."""
    marks: list[Mark] = []
    x, y, line = left, top, 20.0
    for name, key in [(shortened(name, PLAIN, right - left - 31), key) for name, key in entries]:
        wide = 31 + text_width(name, PLAIN) + 18
        if x > left and x + wide > right + 18:
            x, y = left, y + line
        marks += [moved(mark, x + 11, y) for mark in key]
        marks.append(Words(x + 29, y, name, "ink", PLAIN))
        x += wide
    return marks, y + line if entries else y - line / 2


def head(title: str, unit: str, width: float) -> list[Mark]:
    """The title, and under it what the numbers are."""
    told: list[Mark] = [Words(0, 11, shortened(title, 1.07 * HEAD, width), "ink", HEAD, bold=True)]
    return told + ([Words(0, 31, shortened(unit, PLAIN, width), "soft", PLAIN)] if unit else [])


def key(index: int) -> list[Mark]:
    """A series in the legend."""
    colour = colour_of(index)
    return [Shape(((-11, 0), (11, 0)), colour, width=2.2), symbol(index, colour)]


def colour_of(index: int) -> str:
    return SERIES[index % len(SERIES)]


def names_along(names: Sequence[str], left: float, step: float, y: float, *, above: bool) -> tuple[list[Mark], float]:
    """A name at the middle of each cell, aslant where one is too long; and how high they are together."""
    names = [shortened(name, SMALL, LONGEST) for name in names]
    longest = max(text_width(name, SMALL) for name in names)
    slant = longest > step - 4
    rise = -1 if above else 1
    anchor, angle = ("start" if above else "end", -45.0) if slant else ("middle", 0.0)
    marks = [
        Words(left + (place + 0.5) * step + 4 * rise * -slant, y + 10 * rise, name, "soft", SMALL, anchor, angle=angle)
        for place, name in enumerate(names)
    ]
    return [*marks], 0.72 * longest + 14 if slant else 20


def moved(mark: Mark, x: float, y: float) -> Mark:
    if isinstance(mark, Words):
        return replace(mark, x=mark.x + x, y=mark.y + y)
    return replace(mark, points=tuple((px + x, py + y) for px, py in mark.points))


def symbol(index: int, colour: str, *, x: float = 0.0, y: float = 0.0, told: str = "") -> Shape:
    """A series' own shape, for whom its colour is not enough; the pair is its own up to 36 series."""
    corners, turn, radius = _SHAPES[(index + index // len(SERIES)) % len(_SHAPES)]
    angles = [2 * math.pi * (turn + k / corners) for k in range(corners)]
    points = tuple((x + radius * math.cos(a), y - radius * math.sin(a)) for a in angles)
    return Shape(points, "paper", colour, width=1.5, closed=True, told=told)
