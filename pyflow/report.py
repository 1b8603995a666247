"""`pyflow report FILES`: any set of evaluations and latency tables as one page and the PNGs of its charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import page
from .artefact import json_bytes, publish, read_json
from .errors import InvalidArtefact
from .report_files import Bench, Eval, read
from .report_groups import Group, groups
from .report_plots import Figures, Press, by_class, by_steps, latency, quality, training
from .report_sheets import same_seeds, sheets
from .report_words import findings, lead, tables

RECORD = "report.json"
NAMED = 5  # methods in the title
VARIETY: Mapping[str, tuple[str, Figures]] = {
    "Precision": ("share of made pictures that look real", lambda row: row.precision),
    "Recall": ("share of real pictures that can be made", lambda row: row.recall),
}
CLOSE: Mapping[str, tuple[str, Figures]] = {
    "Straightness": ("distance from a line, lower is straighter", lambda row: row.straightness),
    "Labels read back": ("share of pictures read as the class that was asked for", lambda row: row.label_accuracy),
    "SSIM": ("beside the teacher, higher is closer", lambda row: row.against.ssim if row.against else None),
    "LPIPS": ("beside the teacher, lower is closer", lambda row: row.against.lpips if row.against else None),
}


def write(paths: Sequence[Path], folder: Path) -> str:
    """Publish index.html (self-contained), the PNGs of its charts and report.json; returns the page's lead."""
    evals, benches = read(paths)
    found = groups(evals)
    names = list(dict.fromkeys(one.name for one in evals or benches))
    title = ", ".join(names) if len(names) <= NAMED else f"{len(names)} methods"
    title += f" on {', '.join(dict.fromkeys(one.data for one in evals))}" if evals else ": latency"
    told = _lead(found, benches)
    with publish(folder, replaces=_own(folder)) as fresh:
        intro, sections = "", {}
        for number, group in enumerate(found):
            several = len(found) > 1
            parts = _parts(group, Press(fresh, f"{number + 1}-" if several else ""))
            if several:
                whole = "".join(page.heading(name) + content for name, content in parts.items())
                sections[f"{number + 1}. {group.title}"] = findings(group) + page.text(lead(group)) + whole
            else:
                intro, sections = findings(group), dict(parts)
        if len(found) > 1:
            intro = page.note(_apart(found))
        if benches:
            sections["Latency alone"] = latency(benches, Press(fresh, ""))
        sections["Where these figures come from"] = "".join([*map(_facts, evals), *map(_facts, benches)])
        (fresh / "index.html").write_text(page.document(title, told, sections, {}, intro), encoding="utf-8")
        files = sorted(path.name for path in fresh.iterdir())
        record = {"format": 1, "kind": "report", "of": [path.name for path in paths], "files": [*files, RECORD]}
        (fresh / RECORD).write_bytes(json_bytes(record))
    return told


def _parts(group: Group, press: Press) -> dict[str, str]:
    parts = {
        "Quality against latency": quality(group, press),
        "The same seeds, plan by plan": same_seeds(group, press),
        "By class": by_class(group, press),
        "Fidelity and variety": by_steps(group, press, VARIETY),
        "Straightness and likeness": by_steps(group, press, CLOSE),
        "The figures": tables(group),
        "Training": training(group, press),
        "Samples": sheets(group),
    }
    return {name: content for name, content in parts.items() if content}


def _lead(found: Sequence[Group], benches: Sequence[Bench]) -> str:
    if len(found) == 1:
        return lead(found[0])
    if found:
        return f"{sum(len(group.methods) for group in found)} methods in {len(found)} settings, each by itself."
    names = ", ".join(dict.fromkeys(bench.name for bench in benches))
    return f"How long {names} take{'s' * (len(benches) == 1)}; nothing here tells how good the pictures are."


def _apart(found: Sequence[Group]) -> str:
    """In what the groups differ."""
    first = found[0].about
    differ = {
        what: list(dict.fromkeys(str(getattr(group.about, field)) for group in found))
        for what, field in (
            ("data", "data"),
            ("extractors", "features"),
            ("numbers of pictures", "num_samples"),
            ("classes", "classes"),
        )
    }
    named = [f"{what} ({'; '.join(values)})" for what, values in differ.items() if len(values) > 1]
    if any(group.about.reference != first.reference for group in found):
        named.append("real pictures")
    return (
        f"These files are of {len(found)} settings with different {', '.join(named)}. Their distances can't be "
        "compared, so each setting has a section and plots of its own."
    )


def _facts(one: Eval | Bench) -> str:
    facts: dict[str, object] = {
        "network": f"{one.subject.source}, {one.subject.backend}, {one.subject.identity[:12]}",
        "guidance": f"{one.guidance:g}",
    }
    if isinstance(one, Eval):
        facts |= {
            "method": one.method,
            "extractor": one.features,
            "data": one.data,
            "pictures": f"{one.num_samples:,} for each of the seeds {', '.join(map(str, one.seeds))}",
            "real pictures": f"{one.reference.count:,}, {one.reference.sha256[:12]}",
            "solver": one.solver or "the network's own",
        }
    return page.folded(f"{one.name} ({one.path.name})", page.definitions({**facts, **one.facts}))


def _own(folder: Path) -> list[str]:
    """The names of what an earlier report wrote there."""
    try:
        record = read_json(folder / RECORD)
        return [str(name) for name in record["files"]] if record["kind"] == "report" else []
    except (InvalidArtefact, KeyError, TypeError):
        return []
