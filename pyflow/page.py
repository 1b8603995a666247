"""A page's parts: one HTML file that carries its pictures and charts, for a desktop and a phone, by day and by night."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from .charts import Chart
from .drawing import COLOURS, FONTS

_DAY, _NIGHT = (";".join(f"--{name}:{pair[at]}" for name, pair in COLOURS.items()) for at in (0, 1))
_STYLE = f"""
:root {{ color-scheme: light dark; {_DAY} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_NIGHT} }} }}
* {{ box-sizing: border-box }}
body {{ font: 16px/1.6 {", ".join(f'"{name}"' for name in FONTS)}, system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 57.5rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; -webkit-text-size-adjust: 100% }}
h1 {{ font-size: clamp(1.7rem, 4.5vw, 2.4rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 1rem; text-wrap: balance; overflow-wrap: anywhere }}
h2 {{ font-size: 1.4rem; line-height: 1.25; letter-spacing: -.01em; margin: 3.5rem 0 1rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); text-wrap: balance; overflow-wrap: anywhere }}
h3 {{ font-size: 1.05rem; margin: 2.25rem 0 .6rem }}
p, figcaption, li {{ color: var(--soft); max-width: 44rem; overflow-wrap: anywhere }} p {{ margin: .6rem 0 }}
figcaption {{ font-size: .875rem; line-height: 1.5; margin-top: .5rem }} strong {{ color: var(--ink); font-weight: 600 }}
.lead {{ font-size: 1.2rem; line-height: 1.5; color: var(--ink); max-width: 46rem }}
.findings {{ list-style: none; margin: 1.5rem 0 0; padding: 0; display: grid; gap: .9rem }}
.findings li {{ border-left: 4px solid var(--key); padding: .1rem 0 .1rem 1rem; font-size: 1.05rem }}
.note {{ border-left: 4px solid var(--yellow); background: var(--faint); padding: .6rem 1rem; color: var(--ink) }}
figure {{ margin: 1.5rem 0 2.25rem }} svg, img {{ display: block; max-width: 100%; height: auto }} svg {{ width: 100%; overflow: visible }}
svg text {{ font-family: inherit; font-variant-numeric: tabular-nums }} .narrow {{ display: none }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 3rem }} .pair .wide {{ display: none }} .pair .narrow {{ display: block; max-width: 100% !important }}
img {{ border-radius: 4px }} .pixels {{ image-rendering: pixelated }}
.scroll {{ overflow-x: auto; margin: 1.25rem 0 }} table {{ border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.35; font-variant-numeric: tabular-nums; border-bottom: 1.5px solid var(--ink) }}
th, td {{ padding: .42rem .6rem; text-align: right; white-space: nowrap }} td {{ border-top: 1px solid var(--rule) }}
th {{ font-weight: 600; color: var(--soft); vertical-align: bottom; border-top: 1.5px solid var(--ink); white-space: normal }} tbody tr:first-child td {{ border-top: 1px solid var(--ink) }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper) }} th:last-child, td:last-child {{ padding-right: 0 }} td small {{ color: var(--soft); font-size: .8em }}
.key {{ display: inline-block; width: .65em; height: .65em; border-radius: 2px; background: var(--key); margin-right: .55em }}
.rows {{ display: grid; grid-template-columns: max-content minmax(0, max-content); gap: 0 .9rem; margin: 1.25rem 0 }}
.rows ol {{ list-style: none; margin: 0; padding: 0; max-width: 16rem; display: grid; grid-auto-rows: 1fr; font-size: .85rem; line-height: 1.2 }}
.rows li {{ display: flex; align-items: center; color: var(--soft); white-space: nowrap; overflow: hidden; text-overflow: ellipsis }} .rows .columns {{ max-width: none; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); width: 0; min-width: 100%; padding-bottom: .3rem; font-size: .75rem }}
.columns li {{ justify-content: center }}
.grids {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.5rem }} .grids figure {{ margin: 0 }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.25rem; color: var(--soft); font-size: .875rem }} dd {{ margin: 0; overflow-wrap: anywhere }}
details {{ margin: .75rem 0 }} summary {{ cursor: pointer; font-weight: 600; overflow-wrap: anywhere }}
@media (max-width: 50rem) {{
  body {{ padding: 2rem 1.25rem 4rem }} .wide {{ display: none }} .narrow {{ display: block }} .lead {{ font-size: 1.1rem }}
  .rows {{ gap: 0 .6rem }} .rows ol {{ font-size: .7rem; line-height: 1; max-width: 45vw }} .rows .columns {{ max-width: none }}
  .columns li {{ writing-mode: vertical-rl; transform: rotate(180deg); justify-content: flex-start; white-space: nowrap }}
}}
"""
_RECORD = "Where these figures come from"


def document(title: str, lead: str, sections: Mapping[str, str], facts: Mapping[str, object], intro: str = "") -> str:
    """The whole page: `intro` is HTML under the lead, `sections` are HTML under their headings."""
    shown = {**sections, **({_RECORD: definitions(facts)} if facts else {})}
    body = "".join(f"<h2>{html.escape(heading)}</h2>\n{content}\n" for heading, content in shown.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>
{intro}{body}</body></html>
"""


def text(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def note(words: str) -> str:
    """What a reader has to know before he compares."""
    return f'<p class="note">{html.escape(words)}</p>'


def heading(words: str) -> str:
    """Of a part of a section."""
    return f"<h3>{html.escape(words)}</h3>"


def findings(sentences: Sequence[tuple[str, str, str]]) -> str:
    """(colour, name, what was found): a line each, beside the name's colour."""
    lines = "".join(
        f'<li style="--key:var(--{colour})"><strong>{html.escape(name)}</strong> {html.escape(found)}</li>'
        for colour, name, found in sentences
    )
    return f'<ul class="findings">{lines}</ul>'


def definitions(facts: Mapping[str, object]) -> str:
    told = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
    return f"<dl>{told}</dl>"


def folded(summary: str, content: str) -> str:
    """HTML that opens at a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]], colours: Sequence[str] = ()) -> str:
    """The first cell of a line is a name, the others are numbers; `colours` are the lines' keys."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    keys = [f'<i class="key" style="--key:var(--{colour})"></i>' for colour in colours] or [""] * len(lines)
    body = "".join(
        f"<tr><td>{key}{html.escape(name)}</td>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for key, (name, *cells) in zip(keys, lines)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def chart(shown: Chart, caption: str = "") -> str:
    told = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{shown.svg()}{told}</figure>"


def pair(charts: Sequence[str]) -> str:
    """Charts side by side where there is room."""
    return f'<div class="pair">{"".join(charts)}</div>'


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
