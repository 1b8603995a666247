"""The Lines study's six results as a page, its pictures and results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .artefact import json_bytes, publish
from .axes import colour_of
from .charts import Chart
from .errors import InvalidInput
from .export.build import GUIDANCE_LIMIT
from .noise import PICTURE_LIMIT
from .page import chart, document, figures, plan_name, rows, table, text
from .pictures import grid_of
from .plots import Axis, Line, Point, line_plot
from .sampler import BATCH_LIMIT, STEPS_LIMIT

METHODS = TEACHER, LINES, NAIVE = "teacher", "lines", "naive"
STATE = "state"
STEPS = (1, 2, 4)
MOMENTS = (0.0, 0.2, 0.5, 0.8, 1.0)  # of the trajectory
COLUMNS, SHOWN = 10, 64
CELL = {5: 112, 8: 64, COLUMNS: 80}  # screen pixels of a picture, by the columns of its sheet


@dataclass(frozen=True)
class Setting:
    """The size of a study. `changes` are fields of all three recipes."""

    data: str = "digits"
    size: str | None = None
    pairs: int = 2560
    held_out: int = 256
    ddim: int = 200  # steps of the teacher
    guidance: float = 2.0  # of the teacher; in the students' weights
    device: str = "cpu"
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("pairs", 1, PICTURE_LIMIT),
            ("held_out", SHOWN, BATCH_LIMIT),
            ("ddim", max(STEPS) + 1, STEPS_LIMIT),
        ):
            if not least <= getattr(self, name) <= most:
                raise InvalidInput(f"{name} is {getattr(self, name)}; expected {least} to {most} for this study")
        if not 0 <= self.guidance <= GUIDANCE_LIMIT:
            raise InvalidInput(f"guidance is {self.guidance}; expected 0 to {GUIDANCE_LIMIT}, 1 for none")


@dataclass(frozen=True)
class Measure:
    """A plan of one method. `held_out` is the mean square of its pictures less the teacher's of the same noise."""

    method: str
    steps: int
    ms_per_image: float
    first_image_ms: float
    speedup: float
    held_out: float
    distance: float
    label_accuracy: float


@dataclass(frozen=True)
class Found:
    """What the study found. `along` is the held-out error of a network's image at a point of the line, by time."""

    setting: Setting
    measures: Sequence[Measure]
    along: Mapping[str, Mapping[float, float]]
    pictures: Mapping[tuple[str, int], np.ndarray]  # uint8 NHWC, the same noise and labels
    trajectory: Mapping[str, np.ndarray]  # uint8 (TRAJECTORIES, MOMENTS, H, W, C): the states and what is told of them
    floor: float  # the distance of real, held-out pictures
    protocol: str
    facts: Mapping[str, object]

    def results(self) -> dict[str, Any]:
        return {
            "setting": asdict(self.setting),
            "measures": [asdict(measure) for measure in self.measures],
            "held_out_along_the_line": {
                name: {str(t): e for t, e in curve.items()} for name, curve in self.along.items()
            },
            "floor": self.floor,
            "protocol": self.protocol,
            "facts": dict(self.facts),
        }


def write(found: Found, folder: Path) -> None:
    """Publish the folder: index.html (self-contained), the PNGs it shows, and results.json."""
    ddim, width = found.setting.ddim, next(iter(found.pictures.values())).shape[2]
    compared = [(TEACHER, ddim), (LINES, 4), (LINES, 2), (LINES, 1), (NAIVE, 1)]
    three = [(LINES, 1), (NAIVE, 1), (TEACHER, ddim)]
    shown = [name for name in (STATE, LINES, NAIVE) if name in found.trajectory]
    points = len(found.trajectory[STATE])
    trajectory = np.concatenate([found.trajectory[name][point] for point in range(points) for name in shown])
    sheets = {
        "compare.png": (np.concatenate([found.pictures[plan][:COLUMNS] for plan in compared]), COLUMNS),
        "three-rows.png": (np.concatenate([found.pictures[plan][COLUMNS : 2 * COLUMNS] for plan in three]), COLUMNS),
        "trajectory.png": (trajectory, found.trajectory[STATE].shape[1]),
        "samples-1-step.png": (found.pictures[LINES, 1], 8),
        "samples-4-steps.png": (found.pictures[LINES, 4], 8),
    }
    plot = _plot(found)
    with publish(folder) as fresh:
        for name, (images, columns) in sheets.items():
            grid_of(images, columns, scale=max(1, CELL[columns] // width)).save(fresh / name)
        (fresh / "held-out.png").write_bytes(plot.png())
        (fresh / "results.json").write_bytes(json_bytes(found.results()))
        names = {STATE: "the state", LINES: "Lines tells", NAIVE: "naive tells"}
        sections = {
            "1. Speed": table(*_table(found), [_colour(m.method) for m in found.measures]) + text(found.protocol),
            "2. The same noise": rows(fresh / "compare.png", [plan_name(*plan) for plan in compared]),
            "3. Along the line": text(
                "Points of the straight line between a noise and the picture that the teacher made of it, pairs that "
                "no student saw, and the picture that each network tells from there."
            )
            + rows(
                fresh / "trajectory.png",
                [names[name] for _ in range(points) for name in shown],
                [f"t = {t:g}" for t in MOMENTS],
            ),
            "4. Held-out error": chart(plot) + text(_errors(found)),
            "5. 64 samples, uncurated": figures(
                [(fresh / "samples-1-step.png", "Lines, 1 step"), (fresh / "samples-4-steps.png", "Lines, 4 steps")]
            ),
            "6. Lines, naive, teacher": rows(fresh / "three-rows.png", [plan_name(*plan) for plan in three]),
        }
        page = document(f"The Lines study: {Path(found.setting.data).name}", _lead(found), sections, found.facts)
        (fresh / "index.html").write_text(page, encoding="utf-8")


def summary(found: Found) -> str:
    """The table as text, for a terminal."""
    heads, lines = _table(found)
    widths = [max(map(len, column)) for column in zip(heads, *lines)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in (heads, *lines))


def _of(found: Found, method: str, steps: int) -> Measure:
    return next(measure for measure in found.measures if (measure.method, measure.steps) == (method, steps))


def _lead(found: Found) -> str:
    one, four, naive, stepped = (_of(found, *plan) for plan in ((LINES, 1), (LINES, 4), (NAIVE, 1), (NAIVE, 4)))
    teacher = _of(found, TEACHER, found.setting.ddim)
    return (
        f"A student that learns the teacher's pairs along whole lines makes a picture in one call, "
        f"{one.speedup:.0f} times faster than {teacher.steps} steps of DDIM, at Fréchet distance {one.distance:.3f}, "
        f"and in four calls, {four.speedup:.0f} times faster, at {four.distance:.3f}. The teacher is at "
        f"{teacher.distance:.3f}; one that saw the noise alone is at {naive.distance:.3f}, and in four calls at "
        f"{stepped.distance:.3f}."
    )


def _errors(found: Found) -> str:
    at_noise = {name: curve[0.0] for name, curve in found.along.items()}
    mean = {name: float(np.mean([*curve.values()])) for name, curve in found.along.items()}
    return (
        f"At the noise, t = 0: Lines {at_noise[LINES]:.4f}, naive {at_noise[NAIVE]:.4f}. "
        f"Over the line: Lines {mean[LINES]:.4f}, naive {mean[NAIVE]:.4f}. An error of squares is least for the mean "
        "of all pictures that a noise might become, so it ranks a blurry student above a sharp one: the distances "
        "above do not."
    )


def _table(found: Found) -> tuple[tuple[str, ...], list[list[str]]]:
    heads = (
        "method",
        "steps",
        "ms/image",
        "first image, ms",
        "speed-up",
        "held-out error",
        "distance",
        "label accuracy",
    )
    lines = [
        [
            *(m.method, str(m.steps), f"{m.ms_per_image:.2f}", f"{m.first_image_ms:.2f}", f"{m.speedup:.1f}×"),
            *(f"{m.held_out:.4f}", f"{m.distance:.3f}", f"{m.label_accuracy:.1%}"),
        ]
        for m in found.measures
    ]
    return heads, lines


def _colour(method: str) -> str:
    return colour_of(METHODS.index(method))


def _plot(found: Found) -> Chart:
    lines = [
        Line(name.capitalize(), [Point(t, error) for t, error in curve.items()], METHODS.index(name))
        for name, curve in found.along.items()
    ]
    x, y = Axis("t, from the noise (0) to the picture (1)"), Axis("mean square (log), lower is better", log=True)
    return line_plot("Held-out error along the line", x, y, lines)
