"""`pyflow bench`: seconds of whole samples, as a table and as JSON for `pyflow report`."""

import argparse
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from .artefact import json_bytes, write_file
from .errors import InvalidInput
from .latency import latency
from .loading import load
from .sampler import Flow
from .timing import Timing, machine


def add(made: argparse.ArgumentParser) -> None:
    made.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 200], help="step counts")
    made.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="batch sizes")
    made.add_argument("--guidance", type=float, default=1.0, help="1 is none")
    made.add_argument("--by-op", action="store_true", help="and where a native engine spends its time")
    made.add_argument("--json", type=Path, default=None, help="a file that keeps the figures")
    made.add_argument("--name", default=None, help="what a report calls it; that of --json if none")


def run(arguments: argparse.Namespace) -> None:
    out = arguments.json
    if out and (out.suffix != ".json" or out.is_dir() or not out.parent.is_dir()):
        raise InvalidInput(f"--json is {str(out)!r}; expected a name that ends in .json, in a folder that is there")
    refuse_unwritable_name(arguments.name)
    flow = load(arguments.source, threads=arguments.threads, device=arguments.device, profile=arguments.by_op)
    timings = latency(flow, tuple(arguments.steps), tuple(arguments.batch), arguments.guidance)
    print(f"{'steps':>6} {'batch':>6} {'median ms':>10} {'p99 ms':>9} {'ms/image':>9}")
    for (steps, batch), timing in timings.items():
        ms = 1e3 * timing.median
        print(f"{steps:6d} {batch:6d} {ms:10.2f} {1e3 * timing.p99:9.2f} {ms / batch:9.2f}")
    if arguments.by_op:
        spent = flow.timings.by_op
        for name, seconds in sorted(spent.items(), key=itemgetter(1), reverse=True):
            print(f"{seconds / sum(spent.values()):7.1%} {name}")
    facts = {"command": _command(arguments), "threads": arguments.threads, "device": arguments.device, **machine()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if out:
        write_file(out, json_bytes(record(arguments.name or out.stem, flow, arguments, timings) | {"facts": facts}))
        print(f"kept: {out}")


def refuse_unwritable_name(name: str | None) -> None:
    """What the shell gave in another encoding has characters that no page can hold."""
    try:
        (name or "").encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"--name is {name!a}; expected text in UTF-8") from None


def record(
    name: str, flow: Flow, arguments: argparse.Namespace, timings: Mapping[tuple[int, int], Timing]
) -> dict[str, Any]:
    rows = [
        {
            "steps": steps,
            "batch": batch,
            "median_ms": 1e3 * timing.median,
            "p99_ms": 1e3 * timing.p99,
            "ms_per_image": 1e3 * timing.median / batch,
        }
        for (steps, batch), timing in timings.items()
    ]
    source = arguments.source.resolve().name
    return {
        "format": 1,
        "kind": "bench",
        "name": name,
        "subject": {"source": source, "backend": flow.backend, "identity": flow.identity},
        "guidance": arguments.guidance,
        "rows": rows,
    }


def _command(arguments: argparse.Namespace) -> str:
    """What was asked, by the names of the files and not by their places on this machine."""
    words = [arguments.source.resolve().name, "--steps", *arguments.steps, "--batch", *arguments.batch]
    words += ["--guidance", f"{arguments.guidance:g}", "--threads", arguments.threads, "--device", arguments.device]
    return " ".join(["pyflow bench", *map(str, words)])
