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
tr.student td:first-child { color: var(--accent); font-weight: 600 }
.rows { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }
.rows ol { list-style: none; margin: 0; padding: 0; display: grid; grid-auto-rows: 1fr; color: var(--soft); font-size: .85rem }
.rows li { display: flex; align-items: center }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.25rem } figure { margin: 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; color: var(--soft); font-size: .9rem } dd { margin: 0 }
"""


def page(report: Report, folder: Path) -> str:
    cells = "".join(
        f'<tr class="{html.escape(m.method)}"><td>{html.escape(m.method)}</td><td>{m.steps}</td><td>{m.ms_per_image:.2f}</td>'
        f"<td>{m.images_per_second:.0f}</td><td>{m.first_image_ms:.2f}</td><td>{m.distance:.3f}</td>"
        f"<td>{m.label_accuracy:.1%}</td><td>{m.speedup:.1f}×</td></tr>"
        for m in report.measures
    )
    rows = "".join(f"<li>{html.escape(plan_name(*key))}</li>" for key in report.pictures)
    grids = "".join(
        f'<figure><img class="pixels" src="{_embedded(folder / f"{method}-{steps}-steps.png")}" alt="samples">'
        f"<figcaption>{html.escape(plan_name(method, steps))}</figcaption></figure>"
        for method, steps in report.pictures
    )
    facts = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in report.facts.items()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(report.title)}</title><style>{_STYLE}</style>
<h1>{html.escape(report.title)}</h1><p class="lead">{html.escape(report.lead)}</p>
<h2>The same seeds, fewer and fewer steps</h2>
<div class="rows"><ol>{rows}</ol><img class="pixels" src="{_embedded(folder / "compare.png")}" alt="one row a plan"></div>
<h2>Quality against latency</h2><img src="{_embedded(folder / "quality-latency.png")}" alt="Fréchet distance against latency">
<h2>The table</h2><div class="scroll"><table><tr><th>method</th><th>steps</th><th>ms/image</th><th>images/s</th>
<th>first image, ms</th><th>distance</th><th>label accuracy</th><th>speed-up</th></tr>{cells}</table></div>
<p>{html.escape(report.protocol)} Held-out real pictures are at distance {report.floor:.3f}.</p>
<h2>Samples, uncurated</h2><div class="grids">{grids}</div>
<h2>Where these figures come from</h2><dl>{facts}</dl></html>
"""


def plan_name(method: str, steps: int) -> str:
    return f"{method}, {steps} step{'s' * (steps > 1)}"


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
