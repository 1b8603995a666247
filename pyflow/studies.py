"""`pyflow report STUDY`: what is missing is trained, what is finished is reused, and a page says what was found."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FIELDS = ("steps", "batch")


def add(report: argparse.ArgumentParser, data: str) -> None:
    """Give `report` its studies; `data` tells what data sets there are."""
    studies = report.add_subparsers(required=True, metavar="STUDY")

    def study(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = studies.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run)
        made.add_argument("--out", type=Path, default=Path("runs") / name, help="the run's folder")
        made.add_argument("--report", type=Path, default=Path("report") / name, help="the report's folder")
        for field in _FIELDS:
            made.add_argument(
                f"--{field}", type=int, default=None, help=f"{field} of every training, over its recipe's"
            )
        return made

    lines = study("lines", _lines, "DDIM pairs of a DDPM teacher; a student of whole lines and a naive one")
    lines.add_argument("--data", default="digits", help=data)
    lines.add_argument("--size", default=None, help="of a picture network: 1m, 9m or 36m parameters")
    lines.add_argument("--pairs", type=int, default=2560, help="pairs to learn from")
    lines.add_argument("--held-out", type=int, default=256, help="pairs to judge by")
    lines.add_argument("--ddim", type=int, default=200, help="steps of the teacher")
    lines.add_argument("--guidance", type=float, default=2.0, help="of the teacher, 1 is none")
    lines.add_argument("--device", default="cpu", help="cpu or cuda")

    study("checkerboard", _checkerboard, "every method on points of the plane, judged at 1 to 16 steps")


def _lines(arguments: argparse.Namespace) -> None:
    from .lines import run
    from .lines_page import Setting, summary

    names = ("data", "size", "pairs", "held_out", "ddim", "guidance", "device")
    setting = Setting(**{name: getattr(arguments, name) for name in names}, changes=_changes(arguments))
    found = run(setting, arguments.out, arguments.report)
    print(f"\n{summary(found)}\n\nreport: {arguments.report / 'index.html'}")


def _checkerboard(arguments: argparse.Namespace) -> None:
    from . import checkerboard

    found = checkerboard.run(arguments.out, arguments.report, **_changes(arguments))
    print(f"\n{found}\n\nreport: {arguments.report / 'index.html'}")


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in _FIELDS if (value := getattr(arguments, name)) is not None}
