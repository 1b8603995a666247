"""`pyflow eval`: the quality of an engine or checkpoint by step count, or the search of a grid."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from . import core
from .bench_command import refuse_unwritable_name
from .errors import InvalidInput
from .sampler import SEARCHED

_TABLE = ("frechet", "kernel", "precision", "recall", "density", "coverage", "label_accuracy")
EVAL, SEARCH = Path("eval.json"), Path("search.json")


def step_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected step counts such as 1,2,4") from None


def add(made: argparse.ArgumentParser, data: str) -> None:
    """The flags of `pyflow eval`; `data` tells what data sets there are."""
    made.add_argument("--data", required=True, help=data)
    made.add_argument("--features", required=True, help="classifier:FOLDER, inception, inception:FILE or dino:FOLDER")
    made.add_argument("--steps", type=step_counts, default=(1, 2, 4), help="step counts, such as 1,2,4")
    made.add_argument("--num-samples", type=int, default=1000, help="pictures a seed")
    made.add_argument("--seeds", type=int, default=3, help="how many; the intervals are over them")
    made.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    made.add_argument("--solver", default=None, help=f"one of {', '.join(core.SOLVERS)}; the checkpoint's own if none")
    made.add_argument("--grid", default="uniform", help=f"one of {', '.join([*core.GRIDS, SEARCHED])}")
    made.add_argument("--batch", type=int, default=100, help="pictures at once")
    made.add_argument("--against", type=Path, default=None, help="a teacher: SSIM and LPIPS from the same noise")
    made.add_argument("--against-steps", type=int, default=None, help="of that teacher; 50 if none")
    made.add_argument("--against-guidance", type=float, default=None, help="of that teacher; 1, which is none, if none")
    made.add_argument("--name", default=None, help="what a report calls it; that of --out if none")
    made.add_argument("--out", type=Path, default=None, help=f"{EVAL} or {SEARCH} if none; sheets beside it")
    made.add_argument("--search-grid", action="store_true", help="find the best times for --steps N and keep them")


def run(arguments: argparse.Namespace) -> None:
    from .eval_setting import Against, Setting
    from .evaluation import evaluate

    refuse_unwritable_name(arguments.name)
    arguments.out = arguments.out or (SEARCH if arguments.search_grid else EVAL)
    of_teacher = {"steps": arguments.against_steps, "guidance": arguments.against_guidance}
    named = {name: value for name, value in of_teacher.items() if value is not None}
    if named and not arguments.against:
        name, value = next(iter(named.items()))
        raise InvalidInput(f"--against-{name} is {value}; expected none without --against TEACHER")
    against = Against(arguments.against, **named) if arguments.against else None
    names = ("data", "features", "num_samples", "seeds", "guidance", "solver", "grid", "batch", "threads", "device")
    setting = Setting(**{name: getattr(arguments, name) for name in names}, against=against)
    told = {"name": arguments.name, "command": _command(arguments)}
    if arguments.search_grid:
        _search(arguments, setting, told)
        return
    found = evaluate(arguments.source, arguments.steps, setting, arguments.out, **told)
    print(f"{table(found)}\n\n{arguments.out}")


def _search(arguments: argparse.Namespace, setting: Any, told: dict[str, Any]) -> None:
    from .eval_search import search_grid

    if len(arguments.steps) != 1:
        raise InvalidInput(f"steps is {arguments.steps}; expected one count for --search-grid, such as --steps 4")
    found = search_grid(arguments.source, arguments.steps[0], setting, arguments.out, **told)
    for name, judged in found["judged"].items():
        times = " ".join(f"{time:.3f}" for time in judged["grid"])
        print(f"{name:>10}  {_with_interval(judged['frechet']):>24}  {times}")
    print(f"kept as grid {SEARCHED!r} for {found['steps']} steps: {found['best']}; {arguments.out}")


def table(found: dict[str, Any]) -> str:
    """The rows as text."""
    columns = [name for name in _TABLE if any(name in row for row in found["rows"])]
    lines = [f"{'steps':>8} {'ms/image':>9} " + " ".join(f"{name:>22}" for name in columns)]
    for row in found["rows"]:
        cells = " ".join(f"{_with_interval(row[name]) if name in row else '-':>22}" for name in columns)
        lines.append(f"{row['steps']:8d} {row['ms_per_image']:9.2f} {cells}")
    if found["floor"]:
        cells = " ".join(f"{format(found['floor'].get(name, float('nan')), '.4f'):>22}" for name in columns)
        lines.append(f"{'held out':>8} {'':>9} {cells}")
    seeds = f"{len(found['seeds'])} seeds of {found['num_samples']}"
    return "\n".join([*lines, f"{found['features']}; {seeds} pictures; interval: {found['interval']}"])


def _with_interval(told: dict[str, float | None]) -> str:
    value, low, high = told["value"], told["low"], told["high"]
    assert value is not None
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ± {(high - low) / 2:.4f}"


def _command(arguments: argparse.Namespace) -> str:
    """What was asked, by the names of the folders and not by their places on this machine."""
    said = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("run", "command", "source", "search_grid")
    }
    words = [arguments.source.name] + ["--search-grid"] * arguments.search_grid
    kind, _, place = said["features"].partition(":")
    said["features"] = f"{kind}:{Path(place).name}" if place else kind
    for name, value in said.items():
        if value is not None:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", shown if name == "features" else Path(shown).name]
    return "pyflow eval " + shlex.join(words)
