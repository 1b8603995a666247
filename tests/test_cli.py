"""The command line, end to end: what the README says, at the smallest size."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyflow import commands, export
from pyflow.cli import main, parse
from pyflow.engines import manifest as manifests
from pyflow.sampler import Flow

ROOT = Path(__file__).resolve().parent.parent


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.slow
def test_from_data_to_pictures(tmp_path, capsys):
    """train, export, pairs, distill, export, sample, bench, info on the digits; a second call reuses."""
    teacher, student, pairs = tmp_path / "teacher", tmp_path / "student", tmp_path / "pairs"
    quick = ("--steps", 3, "--batch", 8)
    train = ("train", "cfm", "--data", "digits", "--out", teacher, *quick)
    assert run(*train) == 0
    assert run("export", teacher, "--out", teacher.with_suffix(".engine")) == 0
    make_pairs = ("pairs", teacher.with_suffix(".engine"), "--out", pairs, "--count", 20, "--steps", 2, "--guidance", 2)
    assert run(*make_pairs) == 0
    distill = ("distill", "reflow", "--teacher", teacher, "--pairs", pairs, "--out", student, *quick)
    assert run(*distill) == 0
    assert run("export", student, "--out", student.with_suffix(".engine")) == 0
    capsys.readouterr()

    for again in (train, distill, ("export", student, "--out", student.with_suffix(".engine"))):
        assert run(*again) == 0
        assert "already" in capsys.readouterr().out
    assert run(*make_pairs) == 0
    assert capsys.readouterr().out.startswith("0 shards made")

    picture = tmp_path / "threes.png"
    assert run("sample", student.with_suffix(".engine"), "--label", 3, "--count", 4, "--out", picture) == 0
    assert Image.open(picture).size == (4 * (2 * 17 + 1), 4 * (2 * 17 + 1))
    assert run("sample", student, "--label", 3, "--count", 4, "--out", tmp_path / "same.png") == 0
    same = np.asarray(Image.open(tmp_path / "same.png")).astype(int)
    assert np.abs(same - np.asarray(Image.open(picture))).max() <= 1, "the checkpoint and its engine differ"

    capsys.readouterr()
    assert run("bench", student.with_suffix(".engine"), "--steps", 1, 2, "--batch", 1) == 0
    assert len(re.findall(r"^ +[12] +1 +[\d.]+ +[\d.]+ +[\d.]+$", capsys.readouterr().out, re.M)) == 2
    assert run("info", student.with_suffix(".engine")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["spec"]["provenance"]["pairs"]["guidance"] == 2.0
    assert facts["certificate"]["worst"] <= facts["certificate"]["bound"]["relative"] == 1e-5
    assert run("verify", student.with_suffix(".engine")) == 0
    assert "against the proof it carries" in capsys.readouterr().out
    assert run("verify", student.with_suffix(".engine"), "--checkpoint", student) == 0
    assert "against its checkpoint on fresh noise" in capsys.readouterr().out
    assert run("verify", student.with_suffix(".engine"), "--checkpoint", teacher) == 2
    assert "holds other weights" in capsys.readouterr().err

    # A student has its guidance in its weights: asking for more is refused.
    assert run("sample", student.with_suffix(".engine"), "--label", 3, "--guidance", 2, "--out", picture) == 2
    assert "guidance is 2.0; expected 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_is_trained_by_the_same_command(tmp_path, capsys):
    train = ["train", "classifier", "--data", "digits", "--out", str(tmp_path / "judge"), "--steps", "2"]
    assert main(train) == 0
    assert main(train) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"trained: {tmp_path / 'judge'}",
        f"was finished already: {tmp_path / 'judge'}",
    ]
    assert main([*train[:-3], str(tmp_path / "other"), "--label-dropout", "0.1"]) == 2
    assert "expected only steps, batch, seed" in capsys.readouterr().err


def test_points_go_the_same_way(tmp_path, capsys):
    """A network without labels, on points."""
    teacher, student, pairs = tmp_path / "teacher", tmp_path / "student", tmp_path / "pairs"
    quick = ("--steps", 3, "--batch", 8)
    assert run("train", "cfm", "--data", "checkerboard", "--out", teacher, *quick) == 0
    assert run("pairs", teacher, "--out", pairs, "--count", 10, "--steps", 2) == 0
    assert run("distill", "reflow", "--teacher", teacher, "--pairs", pairs, "--out", student, *quick) == 0
    assert run("sample", student, "--count", 5, "--out", tmp_path / "points.npy") == 0
    assert np.load(tmp_path / "points.npy", allow_pickle=False).shape == (5, 2)
    assert run("sample", student, "--count", 5, "--label", 1, "--out", tmp_path / "points.npy") == 2
    assert "label is 1; this network knows no classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", "nowhere.engine"), "nowhere.engine does not exist; expected an engine or checkpoint folder"),
        (("train", "cmf", "--out", "x"), "recipe is 'cmf'; expected one of cfm"),
        (("train", "reflow", "--out", "x"), "recipe is 'reflow'; expected one of cfm"),
        (("train", "cfm", "--data", "faces", "--out", "x"), "data is 'faces'; expected one of digits, checkerboard"),
        (("export", "nowhere", "--out", "x", "--to", "paper"), "--to is 'paper'; expected one of onnx"),
        (("info", "nowhere"), "nowhere/spec.json is missing"),
    ],
)
def test_a_mistake_is_one_sentence(words, said, clean_refusal):
    assert said in clean_refusal(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--what", "sampler", "--grid", "foo"), "grid is 'foo'; expected one of uniform, cosine"),
        (("--device", "tpu"), "device is 'tpu'; expected one of cpu, cuda"),
        (("--what", "sampler", "--steps", "1000000000"), "expected step counts of 1 to 10000"),
        (("--guidance", "nan"), "guidance is nan; expected a number from 0 to 100"),
        (("--guidance", "101"), "guidance is 101.0; expected a number from 0 to 100"),
        (("--judge", "nowhere"), "nowhere holds no classifier.json"),
    ],
)
def test_a_mistaken_order_over_an_engine_is_one_sentence(words, said, tiny_checkpoint, tiny_engine, capsys):
    assert run("export", tiny_checkpoint, "--out", tiny_engine, *words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("other", [("--psnr", 50), ("--device", "cuda"), ("--what", "step"), ("--to", "aoti")])
def test_an_engine_of_another_order_is_not_kept(other, tiny_checkpoint, tiny_engine, monkeypatch, tmp_path, capsys):
    exported = []
    monkeypatch.setattr(export, "export", lambda *given, **own: exported.append(given))
    assert run("export", tiny_checkpoint, "--out", tiny_engine) == 0
    assert run("export", tiny_checkpoint, "--out", tiny_engine, *other) == 0
    assert len(exported) == (other != ("--device", "cuda")), "ONNX graphs run on both devices, and no others do"


def test_an_engine_of_another_device_is_not_kept(tiny_engine):
    made = manifests.read(tiny_engine)
    on_gpu, on_cpu = (replace(made, backend="aoti", requires=needs) for needs in ({"gpu": "sm_90"}, {}))
    devices = [(commands._runs_on(engine, "cpu"), commands._runs_on(engine, "cuda")) for engine in (on_gpu, on_cpu)]
    assert devices == [(False, True), (True, False)]
    assert commands._runs_on(replace(made, backend="tensorrt", requires={"tensorrt-rtx": "1.7"}), "cuda")


def test_step_counts_say_what_they_are(capsys):
    with pytest.raises(SystemExit):
        run("export", "a", "--out", "b", "--steps", "1,x")
    assert "argument --steps: '1,x' came; expected step counts such as 1,2,4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "nowhere/x.png"), "--out is 'nowhere/x.png'; expected a file in a folder that is there"),
        (("--out", "x.xyz"), "--out is 'x.xyz'; expected a name that ends in .png or"),
        (("--scale", 0), "scale is 0; expected 1 to 64"),
    ],
)
def test_where_pictures_go_is_checked_before_they_are_made(words, said, tiny_checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Flow, "sample", lambda *_, **__: pytest.fail("sampled"))
    assert run("sample", tiny_checkpoint, *words) == 2
    assert said in capsys.readouterr().err


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pyflow.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_bench_needs_no_torch(tiny_engine):
    words = ("bench", tiny_engine, "--steps", 1, "--batch", 1)
    done = without_torch(*words)
    assert done.returncode == 0, done.stderr
    assert "median ms" in done.stdout


@pytest.mark.parametrize("command", ["info", "export"])
def test_a_command_without_its_package_is_one_sentence(command, tiny_checkpoint, tmp_path):
    done = without_torch(command, tiny_checkpoint, *(("--out", tmp_path / "a") if command == "export" else ()))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "pyflow-engine[train]"' in done.stderr


def without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [("train", "cfm", "--data", "checkerboard", "--steps", 1), ("train", "classifier"), ("pairs",), ("export",)],
)
def test_a_file_in_the_way_is_one_sentence(command, tiny_checkpoint, tmp_path, refusal):
    (tmp_path / "file").touch()
    source = () if command[0] == "train" else (tiny_checkpoint,)
    said = refusal(command[0], *source, *command[1:], "--out", tmp_path / "file" / "x")
    assert f"{tmp_path / 'file'} is a file; expected a folder" in said


def test_info_of_this_machine(capsys):
    assert run("info") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in facts["isas"]


def test_help_needs_no_torch():
    probe = (
        "import sys; from pyflow.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_is_there(page):
    """Each command parses; each target of make, each link and each file of results exists."""
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    shown = re.findall(r"^    pyflow (.+)$", text, re.M)
    for command in shown:
        parse(command.split())
    targets = {name for line in re.findall(r"^([a-z][\w -]*):(?!=)", makefile, re.M) for name in line.split()}
    made = re.findall(r"^    make ([\w-]+)|`make ([\w-]+)", text, re.M)
    assert {one or other for one, other in made} <= targets
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in re.findall(r"`(benchmarks/results/[^`]+)`", text) if not (ROOT / name).exists()] == []
    assert shown or made or links


def test_the_tree_of_the_readme_is_that_of_the_repository():
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("## The tree")[1].split("##")[0]
    folder = ROOT
    for line in tree.splitlines():
        names = re.match(r"^(?P<indent> {4,6})(?P<names>(\S+( |$))+)", line)
        if names is None:
            continue
        listed = names["names"].split()
        if len(names["indent"]) == 4:
            folder = ROOT / listed[0]
            assert folder.is_dir(), f"README's tree names {listed[0]}"
        else:
            for name in listed:
                assert (folder / name).exists(), f"README's tree names {folder.name}/{name}"


def test_the_readme_example_runs(tiny_engine, tmp_path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    exec(block.replace("runs/demo/student.engine", str(tiny_engine)).replace("label=3", "label=2"), {})
    assert Image.open(tmp_path / "threes.png").size == (4 * (4 * 9 + 1),) * 2
