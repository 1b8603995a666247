"""A report in words and tables: what each method reached, and every figure with its interval."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from . import page
from .axes import colour_of
from .report_files import Eval, Interval, Row
from .report_groups import Group, Method


# ---- numbers
def figure(value: float) -> str:
    """Three digits that count."""
    return decimals_of([value])(value)


def decimals_of(values: Iterable[float]) -> Callable[[float], str]:
    """All figures of a column with the decimals that its middle one needs, so that they stand aligned."""
    sizes = sorted(abs(value) for value in values if value)
    middle = sizes[len(sizes) // 2] if sizes else 1.0
    places = min(6, max(0, 2 - math.floor(math.log10(middle))))
    return lambda value: f"{value:,.{places}f}".replace("-", "−")


def cells_of(found: Sequence[Interval | float | None], percent: bool = False) -> list[str]:
    """A column of a table: values, with their intervals where these are known."""
    values = [one.value if isinstance(one, Interval) else one for one in found]
    told = (lambda value: f"{value:.1%}") if percent else decimals_of([value for value in values if value is not None])
    cells = []
    for one, value in zip(found, values):
        cell = "–" if value is None else told(value)
        if isinstance(one, Interval) and one.low is not None and one.high is not None:
            even = math.isclose(one.high - one.value, one.value - one.low, rel_tol=1e-3, abs_tol=1e-9)
            reach = f"{(one.high - one.low) / 2:.1%}" if percent else told((one.high - one.low) / 2)
            cell += f" ± {reach}" if even else f" ({told(one.low)} to {told(one.high)})"
        cells.append(cell)
    return cells


def _within(found: Interval) -> str:
    if found.low is None or found.high is None:
        return figure(found.value)
    told = decimals_of([found.value])
    return f"{told(found.value)} ({told(found.low)} to {told(found.high)})"


def times(factor: float) -> str:
    return f"{factor:,.0f}×" if factor >= 9.95 else f"{factor:.1f}×"


# ---- sentences
def findings(group: Group) -> str:
    """One line a method: its shortest plan and its best, each beside the longest of all."""
    return page.findings([(colour_of(method.index), method.name, _finding(group, method)) for method in group.methods])


def _finding(group: Group, method: Method) -> str:
    shortest, best = method.rows[0], method.best
    told = f"in {_plan(group, method, shortest, ' as the longest plan')}."
    return told if best.plan == shortest.plan else f"{told} Best in {_plan(group, method, best)}."


def _plan(group: Group, method: Method, row: Row, beside: str = "") -> str:
    factor = group.factor(method, row)
    if (method, row) == group.longest:
        compared = "the longest plan"
    elif factor is None:
        compared = "on another machine than the longest plan"
    else:
        compared = f"{times(factor)} as fast{beside}"
    steps = f"{row.steps} step{'s' * (row.steps > 1)}" + (f" of its {row.grid_name} grid" if row.grid_name else "")
    return f"{steps}: distance {_within(row.frechet)}, {figure(row.ms_per_image)} ms a picture, {compared}"


def lead(group: Group) -> str:
    """The fastest plan that is no worse than the longest."""
    other, longest = group.longest
    bound = longest.frechet.value if longest.frechet.high is None else longest.frechet.high
    able = [
        (factor, method, row)
        for method, row in group.plans
        if row.frechet.value <= bound and (factor := group.factor(method, row)) is not None
    ]
    factor, method, row = max(able, key=lambda one: one[0])
    if (method, row) == group.longest:
        return (
            f"No faster plan reaches {other.called(longest)}, which is at Fréchet distance {_within(longest.frechet)}."
        )
    return (
        f"{method.called(row)}, reaches {other.called(longest)}, and is {times(factor)} as fast: Fréchet "
        f"distance {_within(row.frechet)} against {_within(longest.frechet)}."
    )


def protocol(group: Group) -> str:
    about = group.about
    seeds = sorted({len(one.seeds) for one in group.files})
    told = " or ".join(map(str, seeds)) + f" seed{'s' * (seeds != [1])}"
    bars_are = "" if seeds == [1] else ", bars their intervals"
    return (
        f"Distances in the features of {about.features}: {about.num_samples:,} pictures a seed, {told}, against "
        f"{about.reference.count:,} real ones of {about.data}{bars_are}."
    )


# ---- tables
def tables(group: Group) -> str:
    plans = group.plans
    rows = [row for _, row in plans]
    accuracy = [row.label_accuracy for row in rows]
    distances: dict[str, list[Interval | float | None]] = {
        "Fréchet": [row.frechet for row in rows],
        "kernel × 1000": [row.kernel.times(1000) for row in rows],
    }
    close: dict[str, list[Interval | float | None]] = {
        "straightness": [row.straightness for row in rows],
        "SSIM": [row.against.ssim if row.against else None for row in rows],
        "LPIPS": [row.against.lpips if row.against else None for row in rows],
    }
    cells = {name: cells_of(column) for name, column in {**distances, **close}.items() if _there(column)}
    if _there(accuracy):
        cells["label accuracy"] = cells_of(accuracy, percent=True)
    variety = {
        name: cells_of([getattr(row, name) for row in rows]) for name in ("precision", "recall", "density", "coverage")
    }
    factors = [group.factor(method, row) for method, row in plans]
    speed = {
        "calls": [str(row.calls) for row in rows],
        "ms a picture": cells_of([row.ms_per_image for row in rows]),
        "pictures a second": cells_of([row.images_per_second for row in rows]),
        "speed-up": ["–" if factor is None else times(factor) for factor in factors],
        "in the network": [f"{row.denoiser_share:.0%}" for row in rows],
        "in the extractor": [f"{row.extractor_share:.0%}" for row in rows],
    }
    return (
        page.heading("Distance")
        + _table(plans, cells)
        + page.text(" ".join([*_floor(group.about), *_beside(rows), *_absent(plans)]))
        + page.heading("Fidelity and variety")
        + _table(plans, variety)
        + page.heading("Time")
        + _table(plans, speed)
    )


def _floor(about: Eval) -> list[str]:
    names = {"frechet": ("Fréchet", 1), "kernel": ("kernel × 1000", 1000)}
    found = {names.get(name, (name.replace("_", " "), 1)): value for name, value in about.floor.items()}
    told = [f"{name} {figure(factor * value)}" for (name, factor), value in found.items() if name != "count"]
    return [f"Held-out real pictures: {', '.join(told)}."] if told else []


def _beside(rows: Sequence[Row]) -> list[str]:
    others = sorted({row.against.name for row in rows if row.against})
    return [f"Likeness is to {', '.join(others)}, from the same noise."] if others else []


def _absent(plans: Sequence[tuple[Method, Row]]) -> list[str]:
    reasons = dict.fromkeys(row.no_straightness for _, row in plans if row.no_straightness)
    named = {why: [method.called(row) for method, row in plans if row.no_straightness == why] for why in reasons}
    return [f"No straightness of {'; '.join(names)}: {why}." for why, names in named.items()]


def _there(column: Iterable[object]) -> bool:
    return any(one is not None for one in column)


def _table(plans: Sequence[tuple[Method, Row]], columns: Mapping[str, Sequence[str]]) -> str:
    names = [(method.name, row.label) for method, row in plans]
    lines = [[*name, *cells] for name, cells in zip(names, zip(*columns.values()))]
    return page.table(["method", "steps", *columns], lines, [colour_of(method.index) for method, _ in plans])
