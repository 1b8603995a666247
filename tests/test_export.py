"""Export: what is published was proved; what is not proved is not published."""

import errno
import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import POINTS, UNET, save

from pyflow import certificate, checkpoint, commands, load
from pyflow.artefact import sha256
from pyflow.certificate import ParityError, reference
from pyflow.engines import manifest as manifests
from pyflow.engines.manifest import BOUNDS
from pyflow.engines.runner import Request
from pyflow.errors import InvalidInput
from pyflow.export import export
from pyflow.export.build import Built
from pyflow.spec import Spec

onnx = pytest.importorskip("onnx")
MODEL = "denoiser.onnx"


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A checkpoint and an engine of a two-time MLP that knows classes and no null label."""
    folder = tmp_path_factory.mktemp("points")
    save(folder / "checkpoint", Spec(POINTS))
    export(folder / "checkpoint", folder / "points.engine")
    return folder / "checkpoint", folder / "points.engine"


@pytest.fixture
def pair(request):
    """(checkpoint, engine) of the UNet or of the MLP."""
    if request.param == "mlp":
        return request.getfixturevalue("points")
    return request.getfixturevalue("tiny_checkpoint"), request.getfixturevalue("tiny_engine")


@pytest.fixture
def built(monkeypatch):
    """Has the exporter build these bytes as its denoiser."""

    def give(content: bytes) -> None:
        monkeypatch.setattr("pyflow.export.BUILDERS", {"onnx": lambda *_: Built({MODEL: content})})

    return give


both = pytest.mark.parametrize("pair", ["unet", "mlp"], indirect=True)


# ---- what is published
@both
def test_the_certificate_covers_what_the_engine_will_be_asked(pair):
    source, folder = pair
    manifest = manifests.read(folder)
    proved, guided = manifest.certificate, manifest.spec.null_label
    assert proved.batches == (1, 3, 16)
    assert {1, 2, 4, 50} <= set(proved.steps)
    assert proved.guidance == ((1.0, 2.5, 4.0) if guided else (1.0,))
    assert proved.masks
    assert proved.cases == ((3 * 3 + 1) * 2 + 6) * (2 if guided else 1)
    assert proved.bound == BOUNDS["fp32"]
    assert 0 < proved.worst <= proved.bound.relative == 1e-5
    assert 0 <= proved.off_by_one <= 1e-3
    assert proved.psnr > 90
    assert manifest.spec == checkpoint.load_spec(source)
    assert manifest.weights_sha256 == checkpoint.weights_sha256(source)
    assert set(manifest.inputs) == {"x", "s", "label"} | ({"t"} if manifest.spec.network.times == 2 else set())
    for name, record in manifest.files.items():
        content = (folder / name).read_bytes()
        assert (record.sha256, record.bytes) == (sha256(content), len(content))
    assert {path.name for path in folder.iterdir()} == {manifests.NAME, *manifest.files}


@both
@pytest.mark.parametrize("batch", [1, 2, 7, 33])
def test_an_engine_says_what_its_checkpoint_says_at_any_batch(pair, batch, rng):
    source, folder = pair
    seed = int(rng.integers(2**32))
    model, spec = checkpoint.load(source)
    flow = load(folder, threads=1)
    label = rng.integers(spec.network.classes, size=batch)
    for guidance in (1.0, 2.5) if spec.null_label else (1.0,):
        came = flow.sample(batch, steps=3, label=label.tolist(), guidance=guidance, seed=seed).states
        request = Request(flow.plan(3), batch, seed, 0, guidance, label, spec.network.classes)
        expected = reference(model, spec, request)
        assert np.abs(came - expected).max() <= 1e-5 * np.abs(expected).max() * guidance, f"seed {seed}"


def test_a_null_label_reaches_the_engine(tiny_checkpoint, tiny_engine, rng):
    """Without a label the engine says what the checkpoint says for the null label, and not what it says for a class."""
    seed = int(rng.integers(2**32))
    came = load(tiny_engine, threads=1).sample(4, steps=2, seed=seed).states
    other = load(tiny_checkpoint)
    np.testing.assert_allclose(came, other.sample(4, steps=2, seed=seed).states, atol=3e-5)
    for label in range(3):
        assert np.abs(came - other.sample(4, steps=2, seed=seed, label=label).states).max() > 1e-3


# ---- what is not published
def freeze_batch(graph):
    """Every picture gets the prediction of the first."""
    first = onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0])
    zeros = onnx.helper.make_tensor("ends", onnx.TensorProto.INT64, [1], [1])
    graph.initializer.extend([first, zeros])
    rename_output(graph, "inner")
    graph.node.append(onnx.helper.make_node("Slice", ["inner", "first", "ends"], ["row"]))
    graph.node.append(onnx.helper.make_node("Shape", ["x"], ["size"]))
    graph.node.append(onnx.helper.make_node("Expand", ["row", "size"], ["prediction"]))


def traced_batch(graph):
    """The shape that a trace without a dynamic batch leaves: two pictures, always."""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2


def bake(name: str, kind: int, value):
    """An input that is there and is never read."""

    def change(graph):
        graph.initializer.append(onnx.helper.make_tensor("baked", kind, [1], [value]))
        graph.node.insert(0, onnx.helper.make_node("Shape", [name], ["its shape"]))
        graph.node.insert(1, onnx.helper.make_node("Expand", ["baked", "its shape"], ["constant"]))
        for node in list(graph.node)[2:]:
            for index, given in enumerate(node.input):
                if given == name:
                    node.input[index] = "constant"

    return change


def perturb(graph):
    """Every large weight off by a thousandth."""
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 64:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.001), tensor.name))


def say_nan(graph):
    rename_output(graph, "inner")
    graph.initializer.append(onnx.helper.make_tensor("nan", onnx.TensorProto.FLOAT, [], [float("nan")]))
    graph.node.append(onnx.helper.make_node("Mul", ["inner", "nan"], ["prediction"]))


def no_null_label(graph):
    """The null label's row of the class table is a class's: right without guidance, wrong with it."""
    (gather,) = [node for node in graph.node if node.op_type == "Gather" and "label" in node.input]
    (table,) = [tensor for tensor in graph.initializer if tensor.name == gather.input[0]]
    rows = onnx.numpy_helper.to_array(table).copy()
    rows[-1] = rows[0]
    table.CopyFrom(onnx.numpy_helper.from_array(rows, table.name))


def rename_output(graph, name: str) -> None:
    for node in graph.node:
        for index, given in enumerate(node.output):
            if given == "prediction":
                node.output[index] = name


PLANTED = {
    "batch frozen": freeze_batch,
    "batch traced": traced_batch,
    "label baked in": bake("label", onnx.TensorProto.INT64, 1),
    "time baked in": bake("s", onnx.TensorProto.FLOAT, 0.5),
    "weights perturbed": perturb,
    "NaN": say_nan,
    "null label lost": no_null_label,
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("standing", [False, True])
def test_a_bad_export_is_not_published(tiny_checkpoint, tiny_engine, tmp_path, built, change, standing):
    model = onnx.load_from_string((tiny_engine / MODEL).read_bytes())
    change(model.graph)
    content = model.SerializeToString()
    built(content)
    folder = tmp_path / "bad.engine"
    if standing:
        shutil.copytree(tiny_engine, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if standing else None
    refused, sentence = ParityError, "Nothing was published"
    if change is traced_batch:
        refused, sentence = InvalidInput, "exported for a batch of 2 and is asked for 1"
    with pytest.raises(refused, match=sentence):
        export(tiny_checkpoint, folder)
    assert ({path.name: path.read_bytes() for path in folder.iterdir()} if standing else None) == before
    assert [path.name for path in tmp_path.iterdir()] == (["bad.engine"] if standing else [])


def test_points_are_held_to_the_bound_of_their_values(points, tmp_path, built):
    """Points have no uint8 values whose flips would tell: weights off by a thousandth fail on the states alone."""
    model = onnx.load_from_string((points[1] / MODEL).read_bytes())
    perturb(model.graph)
    built(model.SerializeToString())
    with pytest.raises(ParityError, match="relative error"):
        export(points[0], tmp_path / "bad.engine")
    assert not list(tmp_path.iterdir())


def test_the_good_export_passes_where_the_planted_ones_fail(tiny_checkpoint, tiny_engine, tmp_path, built):
    model = onnx.load_from_string((tiny_engine / MODEL).read_bytes())
    built(model.SerializeToString())
    manifest = export(tiny_checkpoint, tmp_path / "good.engine")
    assert manifests.read(tmp_path / "good.engine") == manifest
    # A second proof is made of other noise.
    assert manifest.certificate.worst != manifests.read(tiny_engine).certificate.worst


def test_extra_channels_are_refused(tmp_path):
    save(tmp_path / "extra", Spec(replace(UNET, extra=3)))
    with pytest.raises(InvalidInput, match=r"extra=3 channels beside the state; expected 0, or 2 for the kept picture"):
        export(tmp_path / "extra", tmp_path / "extra.engine")


# ---- faults
@pytest.mark.parametrize("standing", [False, True], ids=["absent", "old"])
@pytest.mark.parametrize("call", ["write_bytes", "mkdir", "fsync", "rename"])
def test_whatever_write_fails_an_engine_is_absent_old_or_complete(
    tiny_checkpoint, tiny_engine, tmp_path, monkeypatch, built, call, standing
):
    built((tiny_engine / MODEL).read_bytes())
    proof = certificate.prove(load(tiny_engine).runner, *checkpoint.load(tiny_checkpoint), BOUNDS["fp32"])
    monkeypatch.setattr(certificate, "prove", lambda *_: proof)
    folder, owner = tmp_path / "a.engine", Path if call in ("write_bytes", "mkdir") else os
    if standing:
        shutil.copytree(tiny_engine, folder)
    old = manifests.read(folder) if standing else None
    real = getattr(owner, call)
    for at in itertools.count(1):
        calls = itertools.count(1)

        def faulty(*arguments, at=at, calls=calls, **named):
            if next(calls) == at:
                raise OSError(errno.ENOSPC, "no space left")
            return real(*arguments, **named)

        monkeypatch.setattr(owner, call, faulty)
        try:
            export(tiny_checkpoint, folder)
            break
        except OSError:
            assert not standing or load(folder).sample(1, label=0).images.shape
            if folder.exists():  # the one fault after the swap: the flush of the folder above
                found = manifests.read(folder)
                assert found == old or found.certificate == proof[0]
                assert load(folder).backend == "onnx"
            assert [path.name for path in tmp_path.iterdir()] == ["a.engine"] * folder.exists()
        finally:
            monkeypatch.setattr(owner, call, real)
    assert at > 1 or (standing and call == "rename"), "no fault was injected"  # a swap is no os.rename
    assert manifests.read(folder).certificate == proof[0]


# ---- the command
def test_an_engine_of_the_same_weights_is_kept_and_a_damaged_one_mended(
    tiny_checkpoint, tiny_engine, tmp_path, built, rng
):
    content = (tiny_engine / MODEL).read_bytes()
    built(content)
    folder = tmp_path / "a.engine"
    assert commands.export_engine(tiny_checkpoint, folder, "onnx") is True
    assert commands.export_engine(tiny_checkpoint, folder, "onnx") is False
    for name in (MODEL, manifests.NAME):
        damaged = bytearray((folder / name).read_bytes())
        damaged[0] ^= 0xFF
        (folder / name).write_bytes(damaged)
        assert commands.export_engine(tiny_checkpoint, folder, "onnx") is True
        assert (folder / MODEL).read_bytes() == content
        assert commands.export_engine(tiny_checkpoint, folder, "onnx") is False
    searched = tmp_path / "searched"
    shutil.copytree(tiny_checkpoint, searched)
    checkpoint.keep_grid(searched, (0.0, 0.3, 1.0))
    assert commands.export_engine(searched, folder, "onnx") is True
    assert manifests.read(folder).spec.grids == {"2": (0.0, 0.3, 1.0)}
    manifests.keep_grid(folder, (0.0, 0.2, 0.7, 1.0))
    assert commands.export_engine(searched, folder, "onnx") is False
    with pytest.raises(InvalidInput, match="--to is 'coreml'; expected one of onnx"):
        commands.export_engine(tiny_checkpoint, folder, "coreml")
