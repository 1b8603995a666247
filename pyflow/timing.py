"""The one latency protocol: variants in turn, round by round, so that a drifting machine slows all of them alike."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Seconds of each counted call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(0.99 * len(self.seconds)))]


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def interleave(
    variants: Mapping[Key, Callable[[], object]], *, rounds: int = 15, warmup: int = 2, budget: float = 60.0
) -> dict[Key, Timing]:
    """Time every variant `rounds` times in turn, after warm-up rounds; at least three rounds, even over the budget."""
    for call in list(variants.values()) * warmup:
        call()
    seconds: dict[Key, list[float]] = {name: [] for name in variants}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > budget:
            break
        for name, call in variants.items():
            seconds[name].append(timed(call))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def machine() -> dict[str, str | int]:
    """What a figure has to name: the processor, its cores, the versions, the commit and the date."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions("pyflow-engine", "numpy", "torch", "onnxruntime", "openvino"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions(*packages: str) -> dict[str, str]:
    """The installed versions, without importing anything."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit of the source tree that this file lies in, `+` behind it when the tree has changes."""
    here = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=10"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "not a git tree"
