"""The report's page: one HTML file that carries its pictures, for a desktop and a phone, by day and by night."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #667080; --line: #dfe3e8; --paper: #fff; --accent: #d9480f }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa3af; --line: #343a42; --paper: #16191d } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: auto; padding: 2.5rem 1.25rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 } h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem }
p, figcaption { color: var(--soft) } .lead { font-size: 1.15rem; max-width: 42rem }
img { max-width: 100%; height: auto; border-radius: 6px; display: block } .pixels { image-rendering: pixelated }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; color: var(--soft) }
tr.student td:first-child, tr.lines td:first-child { color: var(--accent); font-weight: 600 }
.rows { display: grid; grid-template-columns: max-content minmax(0, max-content); gap: 0 1rem }
.rows ol { list-style: none; margin: 0; padding: 0; display: grid; grid-auto-rows: 1fr; color: var(--soft); font-size: .85rem }
.rows li { display: flex; align-items: center } .rows .columns { grid-auto-flow: column; grid-auto-columns: 1fr }
.columns li { justify-content: center }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.25rem } figure { margin: 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; color: var(--soft); font-size: .9rem } dd { margin: 0 }
"""


def page(report: Report, folder: Path) -> str:
    heads = ("method", "steps", "ms/image", "images/s", "first image, ms", "distance", "label accuracy", "speed-up")
    lines = [
        [
            *(m.method, str(m.steps)),
            *(f"{m.ms_per_image:.2f}", f"{m.images_per_second:.0f}", f"{m.first_image_ms:.2f}"),
            *(f"{m.distance:.3f}", f"{m.label_accuracy:.1%}", f"{m.speedup:.1f}×"),
        ]
        for m in report.measures
    ]
    grids = [(folder / f"{method}-{steps}-steps.png", plan_name(method, steps)) for method, steps in report.pictures]
    return document(
        report.title,
        report.lead,
        {
            "The same seeds, fewer and fewer steps": rows(
                folder / "compare.png", [plan_name(*key) for key in report.pictures]
            ),
            "Quality against latency": picture(folder / "quality-latency.png", "Fréchet distance against latency"),
            "The table": table(heads, lines)
            + text(f"{report.protocol} Held-out real pictures are at distance {report.floor:.3f}."),
            "Samples, uncurated": figures(grids),
        },
        report.facts,
    )


def document(title: str, lead: str, sections: Mapping[str, str], facts: Mapping[str, object]) -> str:
    """The whole page: `sections` are HTML under their headings."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}\n" for heading, content in sections.items())
    told = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{_STYLE}</style>
<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>
{body}<h2>Where these figures come from</h2><dl>{told}</dl></html>
"""


def text(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Each line's first cell is a method, which the style knows."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f'<tr class="{html.escape(line[0])}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def rows(path: Path, names: Sequence[str], columns: Sequence[str] = ()) -> str:
    """A sheet of pictures with a name at each row and, where there are some, at each column."""
    left = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    top = "".join(f"<li>{html.escape(name)}</li>" for name in columns)
    head = f'<i></i><ol class="columns">{top}</ol>' if columns else ""
    return f'<div class="rows">{head}<ol>{left}</ol>{picture(path, ", ".join(names), "pixels")}</div>'


def figures(shown: Sequence[tuple[Path, str]]) -> str:
    """Sheets side by side where there is room, each with its caption."""
    return '<div class="grids">{}</div>'.format(
        "".join(
            f"<figure>{picture(path, 'samples', 'pixels')}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for path, caption in shown
        )
    )


def picture(path: Path, alt: str, style: str = "plot") -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="{style}" src="data:image/png;base64,{content}" alt="{html.escape(alt)}">'


def plan_name(method: str, steps: int) -> str:
    return f"{method}, {steps} step{'s' * (steps > 1)}"
