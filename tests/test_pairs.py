"""Pairs: made once, resumed byte for byte, mended shard by shard, and always the picture of their own noise."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from pyflow.training import pairs
from pyflow.training.pairs import PairsSpec
from tiny import POINTS, UNET, save
from tiny_runs import killed_at_rename
from tqdm import tqdm

from pyflow import commands, load
from pyflow.cli import main
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.noise import normal
from pyflow.spec import Spec

SPEC = PairsSpec("abc", (2,), 3, count=10, seed=5, solver="euler", steps=2, guidance=1.0, shard=4)


def teacher(first: int, labels: np.ndarray) -> np.ndarray:
    """A picture that tells which one it is."""
    start = normal(SPEC.seed, first, len(labels), 2, 0)
    return (start + np.arange(first, first + len(labels))[:, None] + 100 * labels[:, None]).astype(np.float32)


class Counted:
    def __init__(self, stop: int = 100) -> None:
        self.asked: list[int] = []
        self.stop = stop

    def __call__(self, first: int, labels: np.ndarray) -> np.ndarray:
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(first)
        return teacher(first, labels)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_are_the_noise_the_label_and_the_picture_of_one_index(tmp_path):
    assert pairs.generate(teacher, SPEC, tmp_path) == 3
    (noise, labels, pictures), spec = pairs.load(tmp_path)
    assert spec == SPEC
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(noise.numpy(), normal(5, 0, 10, 2, 0))
    index = np.arange(10)
    np.testing.assert_allclose(pictures.numpy(), noise.numpy() + (index + 100 * (index % 3))[:, None], rtol=1e-6)
    assert {str(value.dtype) for value in (noise, pictures)} == {"torch.float32"}


@pytest.mark.parametrize("shard", [1, 3, 10, 64])
def test_the_shards_do_not_change_the_pairs(tmp_path, shard):
    pairs.generate(teacher, SPEC, tmp_path / "a")
    pairs.generate(teacher, PairsSpec(**{**vars(SPEC), "shard": shard}), tmp_path / "b")
    for one, other in zip(pairs.load(tmp_path / "a")[0], pairs.load(tmp_path / "b")[0]):
        assert one.equal(other)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_run_makes_the_missing_shards_only(tmp_path, stop):
    pairs.generate(teacher, SPEC, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pairs.generate(Counted(stop), SPEC, tmp_path / "run")
    if stop:
        with pytest.raises(InvalidArtefact, match=r"has no shard-0000\d\.npy yet; run `pyflow pairs` again"):
            pairs.load(tmp_path / "run")
    rest = Counted()
    assert pairs.generate(rest, SPEC, tmp_path / "run") == 3 - stop
    assert rest.asked == [0, 4, 8][stop:]
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert pairs.generate(Counted(0), SPEC, tmp_path / "run") == 0


PAIRED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_pairs as t
t.pairs.generate(t.teacher, t.SPEC, Path(sys.argv[2]))
"""


def test_killed_between_any_two_files_it_goes_on_to_the_same_bytes(tmp_path):
    pairs.generate(teacher, SPEC, tmp_path / "whole")
    expected, killed = files(tmp_path / "whole"), 0
    for at in (0, 1, 2, 5):  # before the manifest, before the first shard, between a shard and its record, the last one
        folder = tmp_path / str(at)
        killed += killed_at_rename(at, PAIRED, os.path.dirname(__file__), str(folder))
        pairs.generate(teacher, SPEC, folder)
        assert files(folder) == expected
        pairs.load(folder)
    assert killed == 4


def test_of_what_a_killed_process_left_each_clears_its_own(tmp_path):
    pairs.generate(teacher, SPEC, tmp_path)
    whole = files(tmp_path)
    left = [f".{name}.0123abcd.tmp" for name in ("shard-00000.npy", "shard-00001.json", "manifest.json")]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    pairs.generate(teacher, SPEC, tmp_path, rank=1, world=2)
    assert set(files(tmp_path)) == {*whole, left[0], left[2]}, "another process may be writing these"
    pairs.generate(teacher, SPEC, tmp_path)
    assert files(tmp_path) == whole


def test_a_corrupt_shard_and_only_that_one_is_made_again(tmp_path, rng):
    pairs.generate(teacher, SPEC, tmp_path)
    before = files(tmp_path)
    for damage in ("flip", "cut", "gone"):
        number = int(rng.integers(3))
        path = tmp_path / f"shard-0000{number}.npy"
        content = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[: int(rng.integers(len(content)))])
        else:
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
        with pytest.raises(InvalidArtefact, match=path.name):
            pairs.load(tmp_path)
        again = Counted()
        assert pairs.generate(again, SPEC, tmp_path) == 1
        assert again.asked == [4 * number]
        assert files(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "other"},
        {"seed": 6},
        {"steps": 3},
        {"solver": "heun"},
        {"guidance": 2.0},
        {"count": 11},
        {"shard": 5},
        {"batch": 3},
    ],
    ids=str,
)
def test_other_settings_in_the_same_folder_are_refused(tmp_path, change):
    pairs.generate(teacher, SPEC, tmp_path)
    before = files(tmp_path)
    with pytest.raises(InvalidInput, match=f"holds other pairs .*{next(iter(change))} "):
        pairs.generate(teacher, PairsSpec(**{**vars(SPEC), **change}), tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": None},
        {"spec": None},
        {"spec": {}},
        {"spec": {"count": "ten"}},
        {"spec": {"shape": 5}},
        {"spec": {"count": 0}},
        {"spec": {"wings": 2}},
        {"spec": {"count": 40.0}},
        {"spec": {"count": 10**13}},
        {"spec": {"count": 2**31}},
        {"spec": {"shape": ["a"]}},
        {"spec": {"shape": [10**12]}},
        {"spec": {"classes": "x"}},
        {"spec": {"classes": -1}},
        {"spec": {"guidance": 1e999}},
    ],
    ids=str,
)
def test_a_broken_manifest_is_refused(tmp_path, change):
    pairs.generate(teacher, SPEC, tmp_path)
    path = tmp_path / pairs.MANIFEST
    record = json.loads(path.read_text())
    for key, value in change.items():
        record[key] = {**record[key], **value} if value and isinstance(value, dict) else value
    path.write_text(json.dumps(record).replace("Infinity", "1e999"))
    with pytest.raises(InvalidArtefact, match=r"make (it|the pairs) again|this pyflow reads"):
        pairs.load(tmp_path)


@pytest.mark.parametrize(
    "origin", [None, [], "x", {"teacher": None}, {"teacher": []}, {"teacher": {"data": 5}}], ids=str
)
def test_an_origin_that_tells_no_data_is_no_mistake(tmp_path, origin):
    pairs.generate(teacher, SPEC, tmp_path)
    path = tmp_path / pairs.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"origin": origin}))
    assert pairs.data_of(tmp_path) is None
    assert commands.student("reflow", None, tmp_path).data == "pairs"


def test_a_folder_of_something_else_stays_as_it_was(tmp_path, tiny_checkpoint, capsys):
    """A checkpoint that got a manifest would pass for an engine."""
    before = files(tiny_checkpoint)
    for folder in (tiny_checkpoint, tiny_checkpoint / "spec.json"):
        assert main(["pairs", str(tiny_checkpoint), "--out", str(folder), "--count", "4", "--steps", "1"]) == 2
        assert "expected" in capsys.readouterr().err
    assert files(tiny_checkpoint) == before


REFUSED = ("steps 0", "guidance nan", "guidance inf", "guidance 101", "guidance 3", "seed -1", "solver foo")


@pytest.mark.parametrize("asked", REFUSED)
def test_a_refused_order_leaves_nothing(tmp_path, asked, capsys):
    name, value = asked.split()
    source = save(tmp_path / "teacher", Spec(POINTS))  # it knows no null label
    assert main(["pairs", str(source), "--out", str(tmp_path / "pairs"), "--count", "4", f"--{name}", value]) == 2
    assert f"{name} " in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


def test_what_is_no_pairs_folder_is_refused(tmp_path):
    with pytest.raises(InvalidArtefact, match=r"manifest\.json is missing"):
        pairs.load(tmp_path)
    (tmp_path / pairs.MANIFEST).write_text("[]")
    with pytest.raises(InvalidArtefact):
        pairs.load(tmp_path)


@pytest.mark.parametrize(
    "record",
    [None, [], {}, {"sha256": "abc"}, {"pairs": SPEC.identity}, {"pairs": SPEC.identity, "sha256": 5}],
    ids=str,
)
def test_a_broken_record_is_refused_and_its_shard_made_again(tmp_path, record):
    pairs.generate(teacher, SPEC, tmp_path)
    before = files(tmp_path)
    (tmp_path / "shard-00001.json").write_text(json.dumps(record) if record else "no JSON")
    with pytest.raises(InvalidArtefact, match=r"shard-00001"):
        pairs.load(tmp_path)
    again = Counted()
    assert pairs.generate(again, SPEC, tmp_path) == 1
    assert again.asked == [4]
    assert files(tmp_path) == before


def test_shards_of_other_pairs_never_pass_for_these(tmp_path):
    """Their folder lost its manifest, or two commands began in one folder."""
    pairs.generate(teacher, dataclasses.replace(SPEC, seed=6), tmp_path)
    (tmp_path / pairs.MANIFEST).unlink()
    assert pairs.generate(teacher, SPEC, tmp_path) == 3
    pairs.generate(teacher, SPEC, tmp_path.with_name("whole"))
    assert files(tmp_path) == files(tmp_path.with_name("whole"))


def test_a_shard_of_another_shape_is_refused(tmp_path):
    pairs.generate(lambda first, labels: teacher(first, labels).astype(np.float64), SPEC, tmp_path)
    with pytest.raises(InvalidArtefact, match=r"holds float64 \(4, 2\); expected float32 \(4, 2\)"):
        pairs.load(tmp_path)


def test_the_manifest_says_what_made_the_pairs_as_the_first_run_told_it(tmp_path):
    for origin in ({"pyflow": "1.0"}, {"pyflow": "2.0"}):
        pairs.generate(teacher, SPEC, tmp_path, origin=origin)
    assert json.loads((tmp_path / pairs.MANIFEST).read_text())["origin"] == {"pyflow": "1.0"}


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_teacher_is_asked_a_batch_at_a_time_and_progress_counts_pairs(tmp_path, monkeypatch, batch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **told):
            super().__init__(**told, disable=True)
            bars.append([told["initial"], told["total"]])

        def update(self, done):
            bars[-1].append(done)

    monkeypatch.setattr(pairs, "tqdm", Bar)
    spec, asked = dataclasses.replace(SPEC, batch=batch), Counted()
    pairs.generate(asked, spec, tmp_path)
    assert asked.asked == [first for start in (0, 4, 8) for first in range(start, min(start + 4, 10), batch)]
    (tmp_path / "shard-00001.npy").unlink()
    pairs.generate(teacher, spec, tmp_path)
    assert [bar[:2] for bar in bars] == [[0, 10], [6, 10]]
    assert [sum(bar[2:]) for bar in bars] == [10, 4]
    pairs.generate(teacher, SPEC, tmp_path.with_name("whole"))
    for one, other in zip(pairs.load(tmp_path)[0], pairs.load(tmp_path.with_name("whole"))[0]):
        assert one.equal(other)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": -1}, {"shard": 0}, {"batch": 0}], ids=str)
def test_a_count_below_one_is_refused(wrong):
    with pytest.raises(InvalidInput, match=f"{next(iter(wrong))} of the pairs is .*; expected 1 or more"):
        dataclasses.replace(SPEC, **wrong)


# ---- several processes
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_shards(tmp_path, world):
    pairs.generate(teacher, SPEC, tmp_path / "whole")
    made = [pairs.generate(teacher, SPEC, tmp_path / "run", rank=rank, world=world) for rank in range(world)]
    assert sum(made) == 3
    assert max(made) <= 2
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def asked_for(checkpoint, folder) -> list[str]:
    settings = {"--out": folder, "--count": 330, "--shard": 16, "--steps": 3, "--seed": 4}
    return ["pairs", str(checkpoint), *(str(word) for setting in settings.items() for word in setting)]


@pytest.mark.slow
def test_torchrun_makes_the_bytes_of_one_process_and_a_killed_rank_is_made_up_for(tmp_path, tiny_checkpoint, rng):
    command = [sys.executable, "-m", "pyflow.cli", *asked_for(tiny_checkpoint, tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "2"}
    ranks = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(2)]
    victim, after = int(rng.integers(2)), int(rng.integers(8))
    while len([*(tmp_path / "run").glob("shard-*.json")]) < after and ranks[victim].poll() is None:
        time.sleep(0.001)
    ranks[victim].kill()
    assert [rank.wait() for rank in ranks][1 - victim] == 0
    came = files(tmp_path / "run")
    assert len([name for name in came if name.endswith(".json")]) < 22, "it was killed in time"

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, "-m", "pyflow.cli", *command[3:]], env=environment, check=True)
    assert main(asked_for(tiny_checkpoint, tmp_path / "whole")) == 0
    came = files(tmp_path / "run")
    assert {name: content for name, content in came.items() if not name.endswith(".tmp")} == files(tmp_path / "whole")


# ---- through the commands
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_sampler_makes_the_picture_of_a_pair_from_its_noise(tmp_path, rng, tiny_checkpoint, guidance):
    seed = int(rng.integers(2**32))
    setting = {"steps": 2, "solver": "ab2", "guidance": guidance}
    commands.make_pairs(tiny_checkpoint, tmp_path / "pairs", count=70, seed=seed, **setting)
    (noise, labels, pictures), spec = pairs.load(tmp_path / "pairs")
    flow = load(tiny_checkpoint)
    assert (spec.teacher, spec.classes, spec.shape) == (flow.identity, 3, UNET.shape)
    for index in (0, 63, 64, 69):  # on both sides of the border between two calls of the teacher
        came = flow.sample(1, seed=seed, first=index, label=int(labels[index]), **setting).states
        np.testing.assert_allclose(came[0], pictures[index].numpy(), rtol=0, atol=2e-5)
        start = flow.plan(1)[0]._replace(a=1.0, b=0.0)  # a plan that keeps the noise shows what the sampler drew
        drawn = native_noise(flow, start, seed, index)
        np.testing.assert_array_equal(drawn.ravel(), noise[index].numpy().ravel())


def native_noise(flow, row, seed: int, index: int) -> np.ndarray:
    from pyflow import native

    return native.sample(flow.runner.denoiser, [row], batch=1, seed=seed, first=index, label=0).states


@pytest.mark.parametrize("backend", ["native", "eager"])
def test_the_batch_does_not_change_the_pairs(tmp_path, tiny_checkpoint, backend):
    """Noise belongs to the picture. A native engine computes it in one way at every batch, so the bytes are equal."""
    source = tiny_checkpoint
    if backend == "native":
        source = tmp_path / "tiny.engine"
        commands.export_engine(tiny_checkpoint, source, "native")
    setting = {"count": 37, "steps": 3, "guidance": 2.0, "seed": 6}
    came = []
    for batch in (1, 16, 64):
        commands.make_pairs(source, tmp_path / str(batch), batch=batch, **setting)
        came.append(pairs.load(tmp_path / str(batch))[0][2])
    bound = 0.0 if backend == "native" else 2e-5
    for other in came[1:]:
        assert (other - came[0]).abs().max() <= bound


def test_a_student_of_other_pairs_is_another_student(tmp_path):
    """The pairs' own settings are part of the recipe: a second distillation from other pairs is not `finished`."""
    teacher_folder = save(tmp_path / "teacher", Spec(POINTS, null_label=True, provenance={"data": "checkerboard"}))
    setting = {"count": 8, "steps": 1, "solver": "euler", "guidance": 1.0}
    for seed in (1, 2):
        commands.make_pairs(teacher_folder, tmp_path / f"pairs {seed}", seed=seed, **setting)
    changes = {"steps": 2, "batch": 4}
    student = tmp_path / "student"
    assert commands.distil("reflow", teacher_folder, tmp_path / "pairs 1", student, **changes)
    assert not commands.distil("reflow", teacher_folder, tmp_path / "pairs 1", student, **changes)
    with pytest.raises(InvalidInput, match="another recipe"):
        commands.distil("reflow", teacher_folder, tmp_path / "pairs 2", student, **changes)
    spec = load(student).spec
    assert not spec.null_label
    assert spec.provenance["pairs"]["seed"] == 1
