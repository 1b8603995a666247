"""Engines: proved against the reference before they are published, verified before they are opened."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import POINTS, UNET, network, save

from pyflow import checkpoint, commands, core, export, load, native
from pyflow.artefact import sha256
from pyflow.engines import manifest as manifests
from pyflow.engines.onnx import MODEL
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.export import ParityError, export_onnx
from pyflow.spec import Spec

onnx = pytest.importorskip("onnx")


@pytest.fixture
def copy(tiny_engine, tmp_path):
    """An engine that a test may damage."""
    return shutil.copytree(tiny_engine, tmp_path / "copy.engine")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A checkpoint and an engine of a two-time MLP that knows classes and no null label."""
    folder = tmp_path_factory.mktemp("points")
    save(folder / "checkpoint", Spec(POINTS))
    export_onnx(folder / "checkpoint", folder / "points.engine")
    return folder / "checkpoint", folder / "points.engine"


@pytest.fixture
def pair(request):
    """(checkpoint, engine) of the UNet or of the MLP."""
    if request.param == "mlp":
        return request.getfixturevalue("points")
    return request.getfixturevalue("tiny_checkpoint"), request.getfixturevalue("tiny_engine")


both = pytest.mark.parametrize("pair", ["unet", "mlp"], indirect=True)


# ---- what is published
@both
def test_the_certificate_covers_what_the_engine_will_be_asked(pair):
    source, folder = pair
    manifest = manifests.read(folder)
    proved = manifest.certificate
    guided = manifest.spec.null_label
    assert proved.batches == (1, 3, 16)
    assert proved.steps == (1, 2, 4)
    assert proved.guidance == ((1.0, 4.0) if guided else (1.0,))
    assert proved.cases == 3 * 3 * len(proved.guidance)
    assert 0 < proved.worst <= proved.bound == 1e-5
    assert 0 <= proved.off_by_one <= 1e-3
    assert manifest.spec == checkpoint.load_spec(source)
    assert manifest.weights_sha256 == checkpoint.weights_sha256(source)
    assert set(manifest.inputs) == {"x", "s", "label"} | ({"t"} if manifest.spec.network.times == 2 else set())
    assert {name: sha256((folder / name).read_bytes()) for name in manifest.files} == manifest.files
    assert {path.name for path in folder.iterdir()} == {manifests.NAME, *manifest.files}


def test_the_labels_of_a_certificate_are_all_labels_and_the_null_label():
    spec = Spec(UNET, null_label=True)
    for shift in range(5):
        assert set(export._labels(spec, 16, 1.0, shift).tolist()) == {0, 1, 2, 3}
        assert set(export._labels(spec, 16, 4.0, shift).tolist()) == {
            0,
            1,
            2,
        }
        assert set(export._labels(Spec(UNET), 16, 1.0, shift).tolist()) == {0, 1, 2}


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
        expected = export.reference(model, spec, flow.plan(3), torch.from_numpy(label), seed, guidance)
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
def test_a_bad_export_is_not_published(tiny_checkpoint, tiny_engine, tmp_path, monkeypatch, change, standing):
    model = onnx.load_from_string((tiny_engine / MODEL).read_bytes())
    change(model.graph)
    content = model.SerializeToString()
    monkeypatch.setattr(export, "trace", lambda *_: (content, manifests.read(tiny_engine).inputs))
    folder = tmp_path / "bad.engine"
    if standing:
        shutil.copytree(tiny_engine, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if standing else None
    refused, sentence = ParityError, "Nothing was published"
    if change is traced_batch:
        refused, sentence = InvalidInput, "exported for a batch of 2 and is asked for 1"
    with pytest.raises(refused, match=sentence):
        export_onnx(tiny_checkpoint, folder)
    assert ({path.name: path.read_bytes() for path in folder.iterdir()} if standing else None) == before
    assert [path.name for path in tmp_path.iterdir()] == (["bad.engine"] if standing else [])


def test_points_are_held_to_the_bound_of_their_values(points, tmp_path, monkeypatch):
    """Points have no uint8 values whose flips would tell: weights off by a thousandth fail on the states alone."""
    model = onnx.load_from_string((points[1] / MODEL).read_bytes())
    perturb(model.graph)
    monkeypatch.setattr(export, "trace", lambda *_: (model.SerializeToString(), manifests.read(points[1]).inputs))
    with pytest.raises(ParityError, match="relative error"):
        export_onnx(points[0], tmp_path / "bad.engine")
    assert not list(tmp_path.iterdir())


def test_the_good_export_passes_where_the_planted_ones_fail(tiny_checkpoint, tiny_engine, tmp_path, monkeypatch):
    model = onnx.load_from_string((tiny_engine / MODEL).read_bytes())
    monkeypatch.setattr(export, "trace", lambda *_: (model.SerializeToString(), manifests.read(tiny_engine).inputs))
    manifest = export_onnx(tiny_checkpoint, tmp_path / "good.engine")
    assert manifests.read(tmp_path / "good.engine") == manifest
    # A second proof is made of other noise.
    assert manifest.certificate.worst != manifests.read(tiny_engine).certificate.worst


def test_extra_channels_are_refused(tmp_path):
    save(tmp_path / "extra", Spec(replace(UNET, extra=2)))
    with pytest.raises(InvalidInput, match="extra=2"):
        export_onnx(tmp_path / "extra", tmp_path / "extra.engine")


# ---- what is opened
@pytest.fixture
def never_opened(monkeypatch):
    """ONNX Runtime must not see what was not verified."""

    def opened(*_):
        pytest.fail("ONNX Runtime was given an unverified model")

    monkeypatch.setattr(native, "onnx_denoiser", opened)


def test_a_flipped_bit_is_refused_before_the_model_is_opened(copy, rng, never_opened):
    content = (copy / MODEL).read_bytes()
    for position in (0, len(content) - 1, *rng.integers(len(content), size=10).tolist()):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        (copy / MODEL).write_bytes(damaged)
        with pytest.raises(InvalidArtefact, match="damaged or was swapped"):
            load(copy)
    (copy / MODEL).unlink()
    with pytest.raises(InvalidArtefact, match=r"denoiser\.onnx can't be read"):
        load(copy)


def edit(folder, **changes) -> None:
    path = folder / manifests.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BROKEN = {
    "newer format": ({"format": 2}, "has format 2; this pyflow reads 1: upgrade pyflow"),
    "no format": ({"format": None}, "has format None"),
    "another hash": ({"files": {MODEL: "0" * 64}}, "its record says 000000000000"),
    "hash of another type": ({"files": {MODEL: 5}}, "damaged or was swapped"),
    "hash of another type, list": ({"files": {MODEL: []}}, "damaged or was swapped"),
    "no files": ({"files": {}}, "names no files"),
    "files of another type": ({"files": [MODEL]}, "names no files"),
    "outside": ({"files": {MODEL: "0", "../secret": "0"}}, "secret|sha256"),
    "another payload": ({"files": {"other.onnx": "0"}}, "engine; this pyflow runs"),
    "another backend": ({"backend": "tensorrt"}, "is a 'tensorrt' engine; this pyflow runs 'onnx'"),
    "unknown field": ({"wings": 1}, "not an engine's manifest .*wings"),
    "unknown field of the certificate": ({"certificate": {"wings": 1}}, "not an engine's manifest .*wings"),
    "no certificate": ({"certificate": None}, "not an engine's manifest"),
    "spec": ({"spec": {"network": {"kind": "gan"}}}, "network kind is 'gan'"),
    "spec of another type": ({"spec": 5}, "not a pyflow spec"),
    "inputs of another type": ({"inputs": 5}, "inputs is 5"),
    "inputs of inputs": ({"inputs": [["x"]]}, "inputs is"),
}


@pytest.mark.parametrize(("changes", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_refused_before_the_model_is_opened(copy, never_opened, changes, sentence):
    edit(copy, **changes)
    with pytest.raises(InvalidArtefact, match=sentence):
        load(copy)


def test_a_model_that_is_not_its_manifests_is_refused(copy, points):
    """Hashes that fit prove what the file is, not that it is the right one: shapes and inputs are compared too."""
    other = (points[1] / MODEL).read_bytes()
    (copy / MODEL).write_bytes(other)
    edit(copy, files={MODEL: sha256(other)})
    with pytest.raises(InvalidArtefact, match="export it again"):
        load(copy)
    shutil.copytree(points[1], copy.with_name("points.engine"))
    spec = manifests.read(points[1]).to_json()["spec"]
    edit(copy.with_name("points.engine"), spec={**spec, "network": {**spec["network"], "shape": [3]}})
    with pytest.raises(InvalidArtefact, match=r"makes \(2,\), its manifest says .* and \(3,\); export it again"):
        load(copy.with_name("points.engine"))
    (copy / MODEL).write_bytes(b"no model")
    edit(copy, files={MODEL: sha256(b"no model")})
    with pytest.raises((InvalidArtefact, ValueError, RuntimeError)):
        load(copy)


# ---- the command
def test_an_engine_of_the_same_weights_is_kept_and_a_damaged_one_mended(
    tiny_checkpoint, tiny_engine, tmp_path, monkeypatch, rng
):
    content = (tiny_engine / MODEL).read_bytes()
    monkeypatch.setattr(export, "trace", lambda *_: (content, manifests.read(tiny_engine).inputs))
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
    with pytest.raises(InvalidInput, match="--to is 'coreml'; expected one of onnx"):
        commands.export_engine(tiny_checkpoint, folder, "coreml")


def test_a_fresh_networks_certificate_needs_weights_that_count(rng):
    """The fixtures' networks are no zeros: one step moves the state, so a wrong engine cannot hide."""
    net = network(UNET, int(rng.integers(2**31)))
    plan = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(1))
    label = torch.zeros(2, dtype=torch.int64)
    states = export.reference(net, Spec(UNET), plan, label, 3, 1.0)
    start = native.normal(3, 0, 2, 64, 0).reshape(states.shape)
    assert np.abs(states - start).std() > 0.05
