"""Checkpoints come back bit for bit, and one that was damaged, swapped or made by a later pyflow is refused."""

import json
import shutil
import subprocess
import sys
import threading
import time
from itertools import count

import pytest
import torch
from tiny import POINTS, UNET, network, save

from pyflow import checkpoint
from pyflow.errors import InvalidArtefact
from pyflow.spec import Spec


def bits(tensors) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in tensors.items()}


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


@pytest.mark.parametrize("kind", [UNET, POINTS], ids=["unet", "mlp"])
def test_weights_spec_and_state_come_back_bit_for_bit(tmp_path, rng, kind):
    net, spec = network(kind, int(rng.integers(2**31))), Spec(kind, null_label=True, provenance={"steps": 3})
    state = {
        "rng": torch.get_rng_state(),
        "step": torch.tensor(7),
        "odd": torch.randn(3, 5)[:, ::2],
        "empty": torch.empty(0),
        "half": torch.randn(4).bfloat16().float(),
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
    }
    net.to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "a", net, spec, state)
    loaded, loaded_spec = checkpoint.load(tmp_path / "a")
    assert loaded_spec == spec
    assert not loaded.training
    assert bits(loaded.state_dict()) == bits(net.state_dict())
    assert bits(checkpoint.load_state(tmp_path / "a")) == bits(state)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "spec.json",
        "state.safetensors",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("kind", [UNET, POINTS], ids=["unet", "mlp"])
def test_weights_kept_in_bfloat16_come_back_as_float32_and_the_model_stays(tmp_path, rng, kind):
    net, spec = network(kind, int(rng.integers(2**31))), Spec(kind)
    before = bits(net.state_dict())
    checkpoint.save(tmp_path / "whole", net, spec)
    checkpoint.save(tmp_path / "half", net, spec, dtype=torch.bfloat16)
    assert bits(net.state_dict()) == before
    loaded, _ = checkpoint.load(tmp_path / "half")
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.float32}
    rounded = {name: weight.bfloat16().float() for name, weight in net.state_dict().items()}
    assert bits(loaded.state_dict()) == bits(rounded)
    whole, half = ((tmp_path / name / checkpoint.WEIGHTS).stat().st_size for name in ("whole", "half"))
    weights = sum(weight.numel() for weight in net.state_dict().values())
    assert abs(whole - half - 2 * weights) < 1000, "the headers differ by a few bytes, the weights by half"


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.STATE])
def test_one_flipped_bit_anywhere_is_refused(tmp_path, rng, name):
    net = network(POINTS, 0)
    checkpoint.save(tmp_path / "a", net, Spec(POINTS), net.state_dict())
    path = tmp_path / "a" / name
    content = path.read_bytes()
    load = {checkpoint.WEIGHTS: checkpoint.load, checkpoint.STATE: checkpoint.load_state}[name]
    positions = [0, len(content) - 1, *rng.integers(len(content), size=40).tolist()]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(InvalidArtefact, match=f"{name} has sha256"):
            load(tmp_path / "a")
    for size in (0, 8, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InvalidArtefact, match=f"{name} has sha256"):
            load(tmp_path / "a")
    path.write_bytes(content)
    load(tmp_path / "a")


def test_swapped_weights_are_refused(copy, tmp_path):
    other = save(tmp_path / "other", Spec(UNET, null_label=True), seed=1)
    shutil.copy(other / checkpoint.WEIGHTS, copy / checkpoint.WEIGHTS)
    with pytest.raises(InvalidArtefact, match="damaged or was swapped"):
        checkpoint.load(copy)


def edit(folder, change) -> None:
    path = folder / checkpoint.SPEC
    record = json.loads(path.read_text())
    path.write_text(json.dumps(change(record)))


def test_weights_of_another_shape_are_refused(copy):
    def more_classes(record):
        record["spec"]["network"]["classes"] = 4
        return record

    edit(copy, more_classes)
    with pytest.raises(InvalidArtefact, match="do not fit the spec"):
        checkpoint.load(copy)


@pytest.mark.parametrize("found", [2, 0, None, "1", 1.5, [1]], ids=repr)
def test_another_format_is_refused(copy, found):
    edit(copy, lambda record: {**record, "format": found})
    with pytest.raises(InvalidArtefact, match="this pyflow reads 1: upgrade"):
        checkpoint.load(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: {**r, "spec": {**r["spec"], "wings": 1}}, "unknown field wings"),
        (lambda r: {**r, "spec": {**r["spec"], "path": "circle"}}, "path is circle; expected one of linear"),
        (lambda r: {**r, "spec": {**r["spec"], "null_label": 1}}, "null_label is 1"),
        (lambda r: {**r, "spec": {**r["spec"], "network": 1}}, "not a pyflow spec"),
        (lambda r: {**r, "spec": None}, "not a pyflow spec"),
        (lambda r: {k: v for k, v in r.items() if k != "spec"}, "not a pyflow spec"),
        (lambda r: {k: v for k, v in r.items() if k != "sha256"}, "expected hashes of its files"),
        (lambda r: {**r, "sha256": "abc"}, "expected hashes of its files"),
        (lambda r: {**r, "sha256": {}}, r"holds no weights\.safetensors"),
        (lambda r: {**r, "sha256": {checkpoint.WEIGHTS: 5}}, "damaged or was swapped"),
        (lambda r: [r], "not a record"),
        (lambda r: None, "not a record"),
    ],
)
def test_a_corrupted_record_is_refused_by_name(copy, change, sentence):
    edit(copy, change)
    with pytest.raises(InvalidArtefact, match=sentence):
        checkpoint.load(copy)


def test_a_missing_file_is_named(copy):
    with pytest.raises(InvalidArtefact, match=r"holds no state\.safetensors"):
        checkpoint.load_state(copy)
    (copy / checkpoint.WEIGHTS).unlink()
    with pytest.raises(InvalidArtefact, match=r"weights\.safetensors can't be read"):
        checkpoint.load(copy)
    (copy / checkpoint.SPEC).unlink()
    with pytest.raises(InvalidArtefact, match=r"spec\.json is missing"):
        checkpoint.load(copy)


def test_loading_never_unpickles(tiny_checkpoint):
    """The whole of loading, with every way to unpickle made to fail."""
    program = (
        "import sys, pickle, torch\n"
        "from pyflow import checkpoint\n"
        "def refuse(*_, **__): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        "checkpoint.load(sys.argv[1]); print('loaded')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny_checkpoint)], capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr


def test_a_reader_beside_a_writer_sees_one_checkpoint(tmp_path):
    """While a writer replaces the checkpoint over and over, each load gives the weights and spec of one of them."""
    nets = [network(POINTS, seed) for seed in range(2)]
    expected = [bits(net.state_dict()) for net in nets]
    checkpoint.save(tmp_path / "a", nets[0], Spec(POINTS, provenance={"turn": 0}))
    stop = threading.Event()

    def write():
        for turn in count(1):
            if stop.is_set():
                return
            checkpoint.save(tmp_path / "a", nets[turn % 2], Spec(POINTS, provenance={"turn": turn}))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = []
        deadline = time.monotonic() + 60  # a slow disk flushes a checkpoint or two a second
        while len(seen) < 200 or len(set(seen)) <= 10:
            assert time.monotonic() < deadline, f"the writer did not run beside the reader: {seen}"
            net, spec = checkpoint.load(tmp_path / "a")
            seen.append(spec.provenance["turn"])
            assert bits(net.state_dict()) == expected[seen[-1] % 2]
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
