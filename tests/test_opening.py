"""Engines are verified before anything of them is opened, and refused with a sentence where they can't run."""

import io
import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace

import pytest
from tiny import POINTS, save

from pyflow import engines, load, native
from pyflow.artefact import sha256
from pyflow.engines import aoti, host, tensorrt
from pyflow.engines import manifest as manifests
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput
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


def planned(**changes) -> dict:
    return {"plans": [{"graph": "sampler-1", "solver": "euler", "grid": [0, 1], "guidance": 1, **changes}]}


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
    "grid": (planned(grid=[0, 0.5]), "a plan can't be built .*that end at 1.: export it again"),
    "grid of absurd numbers": (planned(grid=[0, 10**400]), "a plan can't be built .*too large"),
    "graph outside": (planned(graph="../sampler"), "a plan has graph '../sampler'; expected a plain name"),
    "plans of a denoiser": (planned(), "holds 1 plans; expected none of a denoiser"),
    "sampler without plans": ({"what": "sampler"}, "holds 0 plans; expected one or more of a sampler"),
    "instruction sets": ({"requires": {"cpu": 5}}, "requires cpu 5; expected a list of names"),
    "one instruction set": ({"requires": {"cpu": "avx2"}}, "requires cpu 'avx2'; expected a list of names"),
    "no instruction sets": ({"requires": {"cpu": None}}, "requires cpu None; expected a list"),
    "lists of instruction sets": ({"requires": {"cpu": [["x"]]}}, "requires cpu .*; expected a list of names"),
    "release of another type": ({"requires": {"torch": 2.1}}, r"requires torch 2\.1; expected a text"),
}


@pytest.mark.parametrize(("changes", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_refused_before_the_model_is_opened(copy, never_opened, changes, sentence):
    edit(copy, **changes)
    with pytest.raises(InvalidArtefact, match=sentence):
        load(copy)


@pytest.mark.parametrize(
    "bound",
    [{}, {"relative": None}, {"relative": 1e-5, "psnr": 40}, {"psnr": 0}, {"relative": -1}, {"relative": 10**400}],
    ids=lambda bound: str(bound)[:30],
)
def test_a_bound_is_one_number(copy, never_opened, bound):
    certificate = manifests.read(copy).to_json()["certificate"]
    edit(copy, certificate={**certificate, "bound": bound})
    with pytest.raises(InvalidArtefact, match="expected one of relative and psnr, above 0: export it again"):
        load(copy)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_know_is_refused(copy, never_opened, number):
    path = copy / manifests.NAME
    path.write_text(path.read_text().replace('"worst": ', f'"worst": {number}, "before": '))
    with pytest.raises(InvalidArtefact, match=r"manifest\.json (is not valid JSON|holds a number that no pyflow)"):
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


def test_without_torch_a_gpus_engine_names_the_extra(copy, monkeypatch):
    edit(copy, requires={"gpu": "sm_90"})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[train\]"'):
        load(copy)
    with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[train\]"'):
        tensorrt.graph(None, None, "cuda")


def test_a_tensorrt_engine_says_which_one_made_it(copy):
    edit(copy, backend="tensorrt", requires={})
    with pytest.raises(InvalidArtefact, match=r"requires {}; expected one of tensorrt, tensorrt-rtx: export it again"):
        load(copy, device="cuda")


@pytest.mark.parametrize(("requires", "device", "own"), [({"gpu": "sm_90"}, "cpu", "cuda"), ({}, "cuda", "cpu")])
def test_a_compiled_engine_on_another_device_names_its_own(copy, requires, device, own):
    manifest = replace(manifests.read(copy), backend="aoti", requires=requires)
    with pytest.raises(InvalidInput, match=f"device is '{device}'; .* compiled for {own}: ask for device='{own}'"):
        engines.runner(manifest, {aoti.PACKAGE: b""}, device=device)


def test_a_package_with_absurd_metadata_is_not_unpacked(copy, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(aoti, "LARGEST_METADATA", 10)
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("p/data/aotinductor/model/w.so", b"")
        archive.writestr("p/data/aotinductor/model/w_metadata.json", b" " * 11)
    manifest = replace(manifests.read(copy), backend="aoti")
    with pytest.raises(InvalidArtefact, match="metadata has 11 bytes; expected at most 10"):
        engines.runner(manifest, {aoti.PACKAGE: package.getvalue()})


def test_an_engine_that_is_exported_again_meanwhile_is_the_new_one(copy, points, monkeypatch):
    real, published = manifests.payload, []

    def late(folder, manifest):
        if not published:
            published.append(shutil.rmtree(copy))
            shutil.copytree(points, copy)
        return real(folder, manifest)

    monkeypatch.setattr(manifests, "payload", late)
    _, manifest, files = engines.open_engine(copy)
    assert manifest == manifests.read(points)
    assert files == {name: (points / name).read_bytes() for name in manifest.files}


def test_the_files_of_somebody_elses_manifest_are_not_an_engines(copy):
    assert set(manifests.files_of(copy)) == {MODEL, "proof.npy"}
    edit(copy, format=1)
    assert set(manifests.files_of(copy)) == {MODEL, "proof.npy"}
    engine = json.loads((copy / manifests.NAME).read_text())
    foreign = [["thesis.tex"], {"files": ["thesis.tex", "photos"]}, {"files": {"thesis.tex": {}}}]
    changes = [{"format": True}, {"seal": None}, {"backend": 1}, {"files": {"thesis.tex": {"sha256": "0"}}}]
    for data in (*foreign, *({**engine, **change} for change in changes)):
        (copy / manifests.NAME).write_text(json.dumps(data))
        assert manifests.files_of(copy) == ()


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
    with pytest.raises(InvalidArtefact, match=r"makes \(2,\) .* its manifest says .*, \(3,\) and 0: export it again"):
        load(copy.with_name("points.engine"))
    (copy / MODEL).write_bytes(b"no model")
    edit(copy, files={MODEL: record(b"no model")})
    with pytest.raises(InvalidArtefact, match="ONNX Runtime refused the model"):
        load(copy)
    edit(copy, files={"proof.npy": record((copy / "proof.npy").read_bytes())})
    with pytest.raises(InvalidArtefact, match=r"the engine lacks 'denoiser\.onnx'"):
        load(copy)
