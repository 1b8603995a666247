"""`pyflow bench --json`: what is kept is what is printed; a file or a name that cannot be is refused before."""

import re

import pytest

from pyflow import report_files
from pyflow.cli import main


def test_bench_keeps_what_it_prints(tiny_engine, tmp_path, capsys):
    out = tmp_path / "times.json"
    words = ["bench", str(tiny_engine), "--steps", "1", "2", "--batch", "1", "3", "--threads", "1", "--json", str(out)]
    assert main(words) == 0
    printed = re.findall(r"^ +(\d+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)$", capsys.readouterr().out, re.M)
    _, (bench,) = report_files.read([out])
    assert [(row.steps, row.batch) for row in bench.rows] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for row, (_, _, *shown) in zip(bench.rows, printed, strict=True):
        assert [f"{ms:.2f}" for ms in (row.median_ms, row.p99_ms, row.ms_per_image)] == shown
    assert bench.name == "times"
    assert bench.facts["threads"] == 1
    assert bench.facts["command"].startswith("pyflow bench tiny.engine --steps 1 2 --batch 1 3 --guidance 1 --threads")
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize("command", ["bench", "eval"])
def test_a_name_that_no_page_can_hold_is_refused_before_anything_is_made(
    command, tiny_engine, clean_refusal, no_native
):
    asked = {"bench": ["--json", "a.json"], "eval": ["--data", "digits", "--features", "classifier:c"]}[command]
    told = clean_refusal(command, tiny_engine, "--name", "a\udcff", *asked)
    assert r"--name is 'a\udcff'; expected text in UTF-8" in told


@pytest.mark.parametrize("name", ["times.txt", "nowhere/times.json"])
def test_bench_refuses_its_file_before_it_times(name, tiny_engine, clean_refusal, no_native):
    told = clean_refusal("bench", tiny_engine, "--json", name)
    assert f"--json is '{name}'; expected a name that ends in .json, in a folder that is there" in told
