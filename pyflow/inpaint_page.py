"""The inpainting study's figures as a page, its pictures and results.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from . import page
from .artefact import json_bytes, publish
from .charts import bars, heat_map, radar
from .pictures import grid_of
from .similarity import decibels

BASE, TUNED = METHODS = "base", "fine-tuned"
WHOLE, HOLE = AREAS = "whole picture", "hole"
SHOWN = 10  # pictures a row
CELL = 72  # screen pixels of a picture
EVERY = "all"
NAMES = {"nmse": "NMSE", "psnr": "PSNR", "ssim": "SSIM", "ssim_every_pixel": "SSIM, every pixel", "lpips": "LPIPS"}


@dataclass(frozen=True)
class Plan:
    """One method's pictures for one kind of mask and one number of steps."""

    method: str
    mask: str
    steps: int


@dataclass(frozen=True)
class Errors:
    """What there is to say of each picture: arrays (N,), `power` being the mean square of the real one."""

    error: np.ndarray
    power: np.ndarray
    ssim: np.ndarray
    ssim_every_pixel: np.ndarray | None = None
    lpips: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: "Sequence[Errors]") -> "Errors":
        """Those of all parts, in their order."""
        columns = {one.name: [getattr(part, one.name) for part in parts] for one in fields(cls)}
        return cls(**{name: np.concatenate(column) for name, column in columns.items() if column[0] is not None})

    def over(self, chosen: np.ndarray) -> dict[str, float]:
        """The figures of a set: NMSE and PSNR are those of its mean error, NMSE 1 where black came back otherwise."""
        error, power = float(self.error[chosen].mean()), float(self.power[chosen].mean())
        told = {
            "nmse": error / power if power else float(error > 0),
            "psnr": min(float(decibels(np.array(error))), MOST_DECIBELS),
        }
        means = {"ssim": self.ssim, "ssim_every_pixel": self.ssim_every_pixel, "lpips": self.lpips}
        return told | {name: float(values[chosen].mean()) for name, values in means.items() if values is not None}


MOST_DECIBELS = 99.0  # of equal pictures, whose PSNR is infinite, which no JSON and no chart holds


@dataclass(frozen=True)
class Found:
    """What the study found: for each plan and each area, the errors of all pictures, and the first ones' pictures."""

    data: str
    classes: Mapping[int, str]  # the names of those that there are pictures of
    labels: np.ndarray
    masks: Sequence[str]
    steps: Sequence[int]
    errors: Mapping[Plan, Mapping[str, Errors]]
    real: np.ndarray  # uint8 (SHOWN, H, W, C), one a class while there are some
    masked: Mapping[str, np.ndarray]  # the same with the holes of each kind of mask
    made: Mapping[Plan, np.ndarray]
    shares: Mapping[str, float]  # of a picture that a mask generates
    protocol: str
    facts: Mapping[str, object]

    @property
    def shown_steps(self) -> int:
        """Those of the charts and pictures: 4, or the nearest."""
        return min(self.steps, key=lambda steps: abs(steps - 4))

    def figure(self, plan: Plan, area: str, name: str, label: int | None = None) -> float:
        errors = self.errors[plan][area]
        return errors.over(np.ones(len(self.labels), bool) if label is None else self.labels == label)[name]

    def rows(self) -> Iterator[dict[str, Any]]:
        for plan, areas in self.errors.items():
            for label in (None, *self.classes):
                chosen = np.ones(len(self.labels), bool) if label is None else self.labels == label
                named = {"class": EVERY if label is None else self.classes[label], "pictures": int(chosen.sum())}
                yield {**asdict(plan), **named, **{area: errors.over(chosen) for area, errors in areas.items()}}

    def results(self) -> dict[str, Any]:
        return {
            "format": 1,
            "kind": "inpaint",
            "data": self.data,
            "shares": dict(self.shares),
            "rows": list(self.rows()),
            "protocol": self.protocol,
            "facts": dict(self.facts),
        }

    def __str__(self) -> str:
        heads, lines = _lines(self)
        widths = [2 + max(map(len, column)) for column in zip(heads, *lines)]
        return "\n".join("".join(f"{cell:>{wide}}" for cell, wide in zip(line, widths)) for line in [heads, *lines])


def write(found: Found, folder: Path) -> None:
    """Publish the folder: index.html (self-contained), the PNGs it shows, and results.json."""
    with publish(folder) as fresh:
        (fresh / "results.json").write_bytes(json_bytes(found.results()))
        sections = {
            "Original, masked, base, fine-tuned": _pictures(found, fresh),
            "How hard each mask is": _difficulty(found, fresh),
            "Each class under each mask": _classes(found, fresh),
            "Fewer and fewer calls": _steps(found, fresh),
            "The table": page.table(*_lines(found)) + page.text(found.protocol),
        }
        lead = (
            f"Holes in held-out pictures of {found.data}, filled by a network that never saw a mask and by the same "
            "network fine-tuned with masks, from the same noise. Whole-picture figures hold the kept pixels too, which "
            "are equal and flatter; the hole's are of the generated pixels alone."
        )
        (fresh / "index.html").write_text(page.document("Inpainting", lead, sections, found.facts), encoding="utf-8")


def _pictures(found: Found, fresh: Path) -> str:
    told, scale = [], max(1, round(CELL / found.real.shape[2]))
    for mask in found.masks:
        plans = [Plan(method, mask, found.shown_steps) for method in METHODS]
        shown = np.concatenate([found.real, found.masked[mask], *(found.made[plan] for plan in plans)])
        path = fresh / f"rows-{mask}.png"
        grid_of(shown, len(found.real), scale).save(path)
        names = ["original", "masked", *(page.plan_name(plan.method, plan.steps) for plan in plans)]
        told.append(page.heading(mask) + page.rows(path, names))
    return "".join(told)


def _difficulty(found: Found, fresh: Path) -> str:
    plans = {method: [Plan(method, mask, found.shown_steps) for mask in found.masks] for method in METHODS}
    series = {method: [found.figure(plan, HOLE, "nmse") for plan in of_method] for method, of_method in plans.items()}
    title, unit = f"Error in the hole, {_calls(found.shown_steps)}", "NMSE of the hole"
    radial = len(found.masks) > 2
    shown = radar(found.masks, series, title, unit) if radial else bars(found.masks, series, title, unit)
    (fresh / "difficulty.png").write_bytes(shown.png())
    return page.chart(shown, "The mean squared error in the hole over the mean square of the picture: outer is harder.")


def _classes(found: Found, fresh: Path) -> str:
    told, names = [], [*found.classes.values()]
    for method in METHODS:
        plans = [Plan(method, mask, found.shown_steps) for mask in found.masks]
        values = [[found.figure(plan, HOLE, "psnr", label) for plan in plans] for label in found.classes]
        shown = heat_map(values, names, found.masks, f"{method}: PSNR of the hole, {_calls(found.shown_steps)}", "dB")
        (fresh / f"classes-{method}.png").write_bytes(shown.png())
        told.append(page.chart(shown))
    return page.pair(told)


def _steps(found: Found, fresh: Path) -> str:
    told = []
    for mask in found.masks:
        series = {
            method: [found.figure(Plan(method, mask, steps), HOLE, "psnr") for steps in found.steps]
            for method in METHODS
        }
        shown = bars([_calls(steps) for steps in found.steps], series, f"{mask}: PSNR of the hole", "dB")
        (fresh / f"steps-{mask}.png").write_bytes(shown.png())
        told.append(page.chart(shown))
    return page.pair(told)


def _lines(found: Found) -> tuple[list[str], list[list[str]]]:
    measured = {area: [*next(iter(found.errors.values()))[area].over(np.array([0]))] for area in AREAS}
    heads = [f"{area.removesuffix(' picture')} {NAMES[name]}" for area, names in measured.items() for name in names]
    lines = [
        [
            *(plan.mask, plan.method, str(plan.steps)),
            *(_told(name, found.figure(plan, area, name)) for area, names in measured.items() for name in names),
        ]
        for plan in sorted(found.errors, key=lambda plan: found.masks.index(plan.mask))
    ]
    return ["mask", "method", "steps", *heads], lines


def _told(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "psnr" else f"{value:.3f}"


def _calls(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"
