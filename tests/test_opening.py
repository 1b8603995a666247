"""Engines are verified before anything of them is opened, and refused with a sentence where they can't run."""

import json
import os
import shutil

import pytest
from tiny import POINTS, save

from pyflow import load, native
from pyflow.artefact import sha256
from pyflow.engines import host
from pyflow.engines import manifest as manifests
from pyflow.errors import BackendUnavailable, InvalidArtefact
from pyflow.export import export
from pyflow.spec import Spec

pytest.importorskip("onnx")
MODEL = "denoiser.onnx"


@pytest.fixture
def copy(tiny_engine, tmp_path):
    """An engine that a test may damage."""
    return shutil.copytree(tiny_engine, tmp_path / "copy.engine")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """The engine of a network that makes points."""
    folder = tmp_path_factory.mktemp("points")
    export(save(folder / "checkpoint", Spec(POINTS)), folder / "points.engine")
    return folder / "points.engine"


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
    """Change the manifest as somebody would who knows how it is sealed."""
    path = folder / manifests.NAME
    body = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**body, "seal": manifests.seal(body)}))


def record(content: bytes, **changes) -> dict:
    return {"sha256": sha256(content), "bytes": len(content), **changes}


BROKEN = {
    "newer format": ({"format": 99}, "has format 99; this pyflow reads 2: upgrade pyflow"),
    "older format": ({"format": 1}, "has format 1; this pyflow reads 2: export it again"),
    "no format": ({"format": None}, "has format None"),
    "another hash": ({"files": {MODEL: record(b"")}}, "it has .* bytes, its record says 0"),
    "hash of another type": ({"files": {MODEL: {"sha256": 5, "bytes": 1}}}, "sha256 is 5; expected"),
    "size of another type": ({"files": {MODEL: {"sha256": "0", "bytes": "1"}}}, 'bytes is "1"; expected'),
    "hash missing": ({"files": {MODEL: {"bytes": 5}}}, "lacks sha256"),
    "file of another type": ({"files": {MODEL: []}}, r"files.denoiser.onnx is \[\]; expected"),
    "no files": ({"files": {}}, "names no files"),
    "files of another type": ({"files": [MODEL]}, r"files is \["),
    "outside": ({"files": {"../secret": record(b"0")}}, "expected a plain name inside the folder"),
    "absolute": ({"files": {"/etc/passwd": record(b"0")}}, "expected a plain name inside the folder"),
    "another payload": ({"files": {"manifest.json": {"sha256": "0", "bytes": 0}}}, "its record says 0"),
    "another backend": ({"backend": "coreml"}, "is a 'coreml' engine; this pyflow runs onnx, aoti"),
    "another shape of export": ({"what": "network"}, "what is 'network'; this pyflow knows denoiser, step, sampler"),
    "another precision": ({"precision": "fp4"}, "precision is 'fp4'; this pyflow knows fp32"),
    "another rule": ({"guidance_rule": "p = c"}, "guidance_rule is 'p = c'"),
    "unknown field": ({"wings": 1}, "unknown field wings"),
    "unknown field of the certificate": ({"certificate": {"wings": 1}}, "unknown field wings"),
    "no certificate": ({"certificate": None}, "no certificate"),
    "spec": ({"spec": {"network": {"kind": "gan"}}}, "network kind is 'gan'"),
    "spec of another type": ({"spec": 5}, "not a pyflow spec"),
    "inputs of another type": ({"inputs": 5}, "inputs is 5"),
    "inputs of inputs": ({"inputs": [["x"]]}, "inputs is"),
    "plan": ({"plans": [{"graph": "g", "solver": "x", "grid": [0, 1], "guidance": 1}]}, "a plan has solver 'x'"),
}


@pytest.mark.parametrize(("changes", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_refused_before_the_model_is_opened(copy, never_opened, changes, sentence):
    edit(copy, **changes)
    with pytest.raises(InvalidArtefact, match=sentence):
        load(copy)


def test_an_edited_manifest_does_not_fit_its_seal(copy, never_opened):
    path = copy / manifests.NAME
    data = json.loads(path.read_text())
    data["certificate"]["worst"] = 0.0
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidArtefact, match="does not fit its own seal: it was edited or damaged"):
        load(copy)


def test_a_link_in_place_of_the_model_is_not_followed(copy, tmp_path, never_opened):
    (copy / MODEL).rename(tmp_path / "elsewhere.onnx")
    (copy / MODEL).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(InvalidArtefact, match=r"denoiser\.onnx can't be read"):
        load(copy)


def test_a_file_of_absurd_size_is_refused_before_it_is_read(copy, monkeypatch, never_opened):
    os.truncate(copy / MODEL, 2**40)  # sparse: nothing on the disk
    with pytest.raises(InvalidArtefact, match=f"it has {2**40} bytes, its record says"):
        load(copy)
    os.truncate(copy / manifests.NAME, 2**30)
    with pytest.raises(InvalidArtefact, match="a record has 16777216 at most"):
        load(copy)


MISFITS = {
    "cpu": (["avx", "avx9000"], "needs the instruction sets avx9000, which this CPU lacks"),
    "gpu": ("sm_999", "was built for a GPU of architecture sm_999; here is"),
    "torch": ("1.2", "was built with torch 1.2; here is 2."),
    "tensorrt": ("9.9", "was built with tensorrt 9.9; here is"),
    "tensorrt-rtx": ("9.9", "was built with tensorrt-rtx 9.9; here is"),
    "quantum": ("yes", "requires quantum 'yes', which this pyflow knows nothing of"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_an_engine_of_another_machine_is_refused_before_it_is_opened(copy, never_opened, what):
    needed, sentence = MISFITS[what]
    edit(copy, requires={what: needed})
    with pytest.raises(BackendUnavailable, match=sentence):
        load(copy)


def test_this_machine_fits_itself(copy):
    flags = list(host.cpu_flags())
    assert any(flag.startswith("avx") for flag in flags)
    edit(copy, requires={"cpu": flags, "torch": host.release("torch")})
    assert load(copy).backend == "onnx"


def test_a_model_that_is_not_its_manifests_is_refused(copy, points):
    """Hashes that fit prove what the file is, not that it is the right one: shapes and inputs are compared too."""
    other = (points / MODEL).read_bytes()
    (copy / MODEL).write_bytes(other)
    edit(copy, files={MODEL: record(other)})
    with pytest.raises(InvalidArtefact, match="export it again"):
        load(copy)
    shutil.copytree(points, copy.with_name("points.engine"))
    spec = manifests.read(points).to_json()["spec"]
    edit(copy.with_name("points.engine"), spec={**spec, "network": {**spec["network"], "shape": [3]}})
    with pytest.raises(InvalidArtefact, match=r"makes \(2,\), its manifest says .* and \(3,\); export it again"):
        load(copy.with_name("points.engine"))
    (copy / MODEL).write_bytes(b"no model")
    edit(copy, files={MODEL: record(b"no model")})
    with pytest.raises((InvalidArtefact, ValueError, RuntimeError)):
        load(copy)
    edit(copy, files={"proof.npy": record((copy / "proof.npy").read_bytes())})
    with pytest.raises(InvalidArtefact, match=r"the engine lacks 'denoiser\.onnx'"):
        load(copy)
