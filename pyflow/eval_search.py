"""`pyflow eval --search-grid`: the times at which a plan of a given step count makes its best pictures."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from . import checkpoint
from .artefact import json_bytes, read_json, write_file
from .core import GRIDS
from .engines import manifest as manifests
from .errors import InvalidInput
from .eval_rows import look_at
from .eval_setting import Setting, Subject, refuse_unwritable
from .metrics import frechet_distance, interval
from .timing import machine

Times = tuple[float, ...]
KIND = "grid-search"
SEARCH_SEED = 0  # of the noise that all tried grids share; the winner is judged on the seeds after it
SWEEPS, CUTS = 2, 5
GOLDEN = (math.sqrt(5) - 1) / 2
FOUND = "searched"


class Tried(NamedTuple):
    times: Times
    frechet: float


def search(distance: Callable[[Times], float], steps: int, shown: Callable[[], object] = lambda: None) -> list[Tried]:
    """All grids that were tried, once each and in their order: the named ones, then each time of the best one in turn.

    A time is moved by golden section between its neighbours, in the second sweep half as far; a sweep starts each time
    at the best grid so far.
    """
    found: dict[Times, float] = {}  # a second sweep comes by some of the first one's grids again

    def ask(times: Times) -> float:
        if times not in found:
            found[times] = distance(times)
        shown()
        return found[times]

    def moved(grid: Times, place: int, time: float) -> float:
        return ask((*grid[:place], time, *grid[place + 1 :]))

    for grid in GRIDS.values():
        ask(grid(steps))
    for sweep in range(SWEEPS):
        for place in range(1, steps):
            best = min(found, key=found.__getitem__)
            reach = 0.5**sweep
            low, high = (best[place] + reach * (best[place + side] - best[place]) for side in (-1, 1))
            _golden(partial(moved, best, place), low, high)
    return [Tried(times, frechet) for times, frechet in found.items()]


def _golden(value: Callable[[float], float], low: float, high: float) -> None:
    """CUTS values inside (low, high), each where the smallest so far tells it to be."""
    first, second = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_first, at_second = value(first), value(second)
    for _ in range(CUTS - 2):
        if at_first < at_second:
            high, second, at_second = second, first, at_first
            first = high - GOLDEN * (high - low)
            at_first = value(first)
        else:
            low, first, at_first = first, second, at_second
            second = low + GOLDEN * (high - low)
            at_second = value(second)


def search_grid(
    source: Path, steps: int, setting: Setting, out: Path, *, name: str | None = None, command: str = ""
) -> dict[str, Any]:
    """Search, judge the winner beside the named grids on fresh seeds, and keep the best of them in `source`."""
    refuse_unwritable(out)
    _refuse_another_file(out)
    if steps < 2:
        raise InvalidInput(f"steps is {steps}; expected 2 or more: a grid of one step has no time to choose")
    if setting.grid != "uniform" or setting.against:
        raise InvalidInput("a search takes neither grid nor against; expected none: it tries grids of its own")
    keep = _keeper(source)
    named = [replace(setting.plan(steps), grid=grid) for grid in GRIDS]
    subject = Subject.of(source, setting, named)

    def distance(times: Times, seed: int = SEARCH_SEED) -> float:
        plan = replace(setting.plan(steps), grid=times)
        counted: dict[str, Any] = {"num_samples": setting.num_samples, "seed": seed, "batch": setting.batch}
        return frechet_distance(look_at(subject.flow, plan, subject.extractor, **counted).whole, subject.real.whole)

    with tqdm(total=len(GRIDS) + SWEEPS * (steps - 1) * CUTS, desc="grids tried", unit="grid") as bar:
        tried = search(distance, steps, bar.update)
    winner = min(tried, key=lambda one: one.frechet).times
    candidates = {name: grid(steps) for name, grid in GRIDS.items()} | {FOUND: winner}
    fresh = range(SEARCH_SEED + 1, SEARCH_SEED + 1 + setting.seeds)
    judged = {
        name: [distance(times, seed) for seed in fresh] for name, times in tqdm(candidates.items(), desc="judged")
    }
    best = min(judged, key=lambda name: sum(judged[name]))
    gains = [before - after for before, after in zip(judged["uniform"], judged[best])]
    found = {
        "format": 1,
        "kind": KIND,
        "name": name or out.stem,
        "subject": {"source": source.resolve().name, "identity": subject.flow.identity},
        "data": subject.data.name,
        "features": subject.extractor.name,
        "num_samples": setting.num_samples,
        "guidance": setting.guidance,
        "solver": setting.solver or subject.flow.spec.solver,
        "steps": steps,
        "seed": SEARCH_SEED,
        "tried": [{"grid": list(one.times), "frechet": one.frechet} for one in tried],
        "fresh_seeds": list(fresh),
        "judged": {
            name: {"grid": list(candidates[name]), "frechet": interval(values)} for name, values in judged.items()
        },
        "best": best,
        "gain_over_uniform": interval(gains),
        "facts": {"command": command, "threads": setting.threads, "device": setting.device, **machine()},
    }
    keep(source, candidates[best])
    write_file(out, json_bytes(found))
    return found


def _refuse_another_file(out: Path) -> None:
    found = read_json(out) if out.exists() else {"kind": KIND}
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InvalidInput(f"--out is {str(out)!r}, which holds no grid search; expected one, or a name that is free")


def _keeper(source: Path) -> Callable[[Path, Times], None]:
    if manifests.is_engine(source):
        return manifests.keep_grid
    if checkpoint.is_checkpoint(source):
        return checkpoint.keep_grid
    raise InvalidInput(f"{source} is neither an engine nor a checkpoint; expected one, which keeps the grid")
