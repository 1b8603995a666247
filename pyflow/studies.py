"""`pyflow report STUDY`: what is missing is trained, what is finished is reused, and a page says what was found."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .eval_command import step_counts
from .masks import GROUPS, KINDS

STUDIES, FILES = ("lines", "checkerboard", "inpaint"), "files"
_FIELDS = ("steps", "batch")


def add(report: argparse.ArgumentParser, data: str) -> None:
    """Give `report` its studies and files; `data` tells what data sets there are."""
    studies = report.add_subparsers(required=True, metavar="STUDY or FILE.json ...")

    def study(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = studies.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        made.set_defaults(run=run, command=made)
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

    holes = study(
        "inpaint", _inpaint, "a network that never saw a mask against one fine-tuned with masks, hole by hole"
    )
    holes.add_argument("--data", default="digits", help=data)
    holes.add_argument("--base", type=Path, default=None, help="an engine or checkpoint; trained where none is named")
    holes.add_argument(
        "--tuned", type=Path, default=None, help="that of `pyflow train inpaint`; made of the base if none"
    )
    holes.add_argument("--each", type=int, default=10, help="held-out pictures a class")
    kinds = ", ".join([*KINDS, *GROUPS])
    holes.add_argument("--masks", type=_words, default="centre,boxes,irregular,half", help=f"some of {kinds}")
    holes.add_argument("--calls", type=step_counts, default="1,2,4,50", help="numbers of steps to fill a hole in")
    holes.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    holes.add_argument("--size", default=None, help="of a base that is trained: 1m, 9m or 36m parameters")
    holes.add_argument("--device", default="cpu", help="cpu or cuda")
    holes.add_argument("--threads", type=int, default=0, help="threads of one network call, 0 for the runtime's choice")

    text = "evaluations and latency tables as one page: pyflow report A.json B.json --out FOLDER"
    files = studies.add_parser(FILES, help=text, description=text, prog="pyflow report")
    files.set_defaults(run=_files, command=files)
    files.add_argument("files", type=Path, nargs="+", metavar="FILE.json", help="of pyflow eval or pyflow bench --json")
    files.add_argument("--out", type=Path, default=Path("report/evaluation"), help="the report's folder")


def spelled(words: Sequence[str]) -> list[str]:
    """`report A.json` is `report files A.json`: what is not the name of a study is a file."""
    if len(words) > 1 and words[0] == "report" and words[1] not in (*STUDIES, FILES, "-h", "--help"):
        return [words[0], FILES, *words[1:]]
    return list(words)


def _files(arguments: argparse.Namespace) -> None:
    from .report import write

    print(f"{write(arguments.files, arguments.out)}\n\nreport: {arguments.out / 'index.html'}")


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


def _inpaint(arguments: argparse.Namespace) -> None:
    from .inpaint_study import Setting, run

    names = ("data", "base", "tuned", "each", "masks", "calls", "guidance", "size", "device", "threads")
    setting = Setting(**{name: getattr(arguments, name) for name in names}, changes=_changes(arguments))
    print(f"\n{run(setting, arguments.out, arguments.report)}\n\nreport: {arguments.report / 'index.html'}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in _FIELDS if (value := getattr(arguments, name)) is not None}
