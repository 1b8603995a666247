"""The networks to time, the table printed at the end, and the file that keeps it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyflow.training.recipes import MLP_2D, UNET_1M
from variants import THREADS, Subject

from pyflow import checkpoint, export
from pyflow.models import random_network
from pyflow.spec import Spec
from pyflow.timing import machine

RESULTS = Path(__file__).parent / "results"
ROWS: list[dict[str, Any]] = []


def _subject(name: str, spec: Spec, folder: Path) -> Subject:
    model = random_network(spec.network)
    checkpoint.save(folder / name, model, spec)
    export.export(folder / name, folder / f"{name}.engine")
    return Subject(model.to(memory_format=torch.channels_last), spec, folder / f"{name}.engine")


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("subjects")
    specs = {"mlp-2d": Spec(MLP_2D), "unet-1.4M": Spec(UNET_1M)}
    return {name: _subject(name, spec, folder) for name, spec in specs.items()}


@pytest.fixture(scope="session", autouse=True)
def one_thread_count() -> Iterator[None]:
    """Every variant runs with PYFLOW_BENCH_THREADS threads, 1 unless told."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return ROWS


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not ROWS or (config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")):
        return
    write = terminalreporter.write_line
    for heading in dict.fromkeys(row["table"] for row in ROWS):
        table = [row for row in ROWS if row["table"] == heading]
        write(f"\n{heading} ({THREADS} thread{'s' * (THREADS > 1)}, median ms; ratios are medians over rounds)")
        names = list(table[0]["median_ms"])
        write(f"{'case':26}" + "".join(f"{name:>22}" for name in names) + f"{'ratio to the last':>32}")
        for row in table:
            medians = "".join(f"{row['median_ms'][name]:22.4f}" for name in names)
            ratios = ", ".join(f"{ratio:.1f}x" for ratio in row["ratio"].values())
            write(f"{row['case']:26}{medians}{ratios:>32}")
    facts = {"command": "make bench", "threads": THREADS, **machine()}
    write("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latency-cpu.json"
    path.write_text(json.dumps({"facts": facts, "rows": ROWS}, indent=1) + "\n")
    write(f"kept in {path}")
