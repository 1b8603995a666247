"""AOTInductor packages: torch's numbers from the C++ loop, bit for bit those of torch's loader; damage is refused."""

import io
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from pyflow import core, native
from pyflow.errors import BackendUnavailable, InvalidArtefact, InvalidInput
from pyflow.spec import Network, Spec

torch = pytest.importorskip("torch")
import tiny  # noqa: E402 - after the skip
from torch import nn  # noqa: E402

from pyflow.engines import aoti, eager, elf  # noqa: E402
from pyflow.export import aoti as builder  # noqa: E402

PLAN = core.euler(core.LINEAR, core.VELOCITY, core.uniform_grid(3))
EXAMPLES = {name: torch.zeros(2, dtype=dtype) for name, dtype in builder.INPUT_DTYPES.items()}


class Named(nn.Module):
    """The network with the inputs that it reads, in their order."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        given = dict(zip(self.names, inputs))
        return self.model(given["x"], given["s"], given.get("t", given["s"]), given["label"])


class InBfloat16(nn.Module):
    """Weights and calls in bfloat16 behind float32 inputs and outputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, x, s, t, label):
        times = (time.to(torch.bfloat16) for time in (s, t))
        return self.model(x.to(torch.bfloat16), *times, label).float()


class Case(NamedTuple):
    model: nn.Module
    spec: Spec
    inputs: tuple[str, ...]
    package: bytes

    def denoiser(self):
        return aoti.denoiser(self.package, self.spec, self.inputs)


def compiled(network: Network, inputs, wrap=lambda model: model) -> Case:
    model = wrap(tiny.network(network, seed=0))
    examples = {**EXAMPLES, "x": torch.zeros(2, *network.shape)}
    package = builder.build_package(Named(model, inputs), tuple(examples[name] for name in inputs), inputs, threads=1)
    return Case(model, Spec(network, null_label=True), inputs, package)


@pytest.fixture(scope="module")
def unet() -> Case:
    return compiled(tiny.UNET, ("x", "s", "label"))


@pytest.fixture(scope="module")
def points() -> Case:
    return compiled(tiny.POINTS, ("label", "t", "x", "s"))  # not in the order of the buffers, on purpose


@pytest.fixture(params=["unet", "points"])
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def options(rng, batch):
    """A sample of fresh noise and labels, among them the null label."""
    label = rng.integers(0, 4, batch)
    return {"batch": batch, "seed": int(rng.integers(2**32)), "label": label, "null_label": 3}


def states(denoiser, **given):
    return native.sample(denoiser, PLAN, **given).states


def relative(came, expected):
    return np.abs(came - expected).max() / np.abs(expected).max()


# ---- the numbers
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_it_equals_torch(case, batch, guidance, rng):
    given = {**options(rng, batch), "guidance": guidance}
    expected = states(eager.runner(case.model, case.spec).denoiser, **given)
    assert relative(states(case.denoiser(), **given), expected) <= 1e-5 * guidance


@pytest.mark.parametrize("batch", [1, 5])
def test_staged_copies_and_torchs_loader_change_no_bit(case, batch, rng, tmp_path):
    given = {**options(rng, batch), "guidance": 1.5}
    direct = states(case.denoiser(), **given)
    np.testing.assert_array_equal(states(aoti.python_denoiser(case.package, case.spec, case.inputs), **given), direct)
    library = tmp_path / "network.so"
    library.write_bytes(aoti._library(case.package, case.spec, case.inputs, "cpu"))
    torch_library = aoti.torch_library(torch)
    staged = native._C.AotiDenoiser(
        str(library), str(torch_library), case.spec.network.shape, 0, case.inputs, 3, "cpu", staged=True
    )
    np.testing.assert_array_equal(states(staged, **given), direct)


def test_it_tells_its_shape_and_inputs(case):
    denoiser = case.denoiser()
    assert (denoiser.shape, denoiser.inputs) == (case.spec.network.shape, case.inputs)


def test_threads_share_one_engine(case):
    denoiser = case.denoiser()

    def run(seed):
        return states(denoiser, batch=3, seed=seed, guidance=1.5, label=2, null_label=3)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(40)))
    for seed, got in enumerate(together):
        np.testing.assert_array_equal(got, run(seed))


def test_a_bfloat16_network_runs(rng):
    case = compiled(tiny.POINTS, ("x", "s", "t", "label"), InBfloat16)
    given = options(rng, 7)
    got = states(case.denoiser(), **given)
    assert relative(got, states(eager.runner(case.model, case.spec).denoiser, **given)) <= 0.05
    twin = states(aoti.python_denoiser(case.package, case.spec, case.inputs), **given)
    np.testing.assert_array_equal(got, twin)


def test_it_needs_no_compiler_and_leaves_no_file(points, tmp_path):
    (tmp_path / "denoiser.pt2").write_bytes(points.package)
    (tmp_path / "temporary").mkdir()
    code = """
import sys
from pathlib import Path
from pyflow import core, native
from pyflow.engines import aoti
from pyflow.spec import MLP, Spec
assert "torch" not in sys.modules
spec = Spec(MLP(shape=(2,), width=16, depth=2, classes=3, times=2), null_label=True)
denoiser = aoti.denoiser(Path("denoiser.pt2").read_bytes(), spec, ("label", "t", "x", "s"))
assert not list(Path("temporary").iterdir())
print(native.sample(denoiser, core.euler(core.LINEAR, core.VELOCITY, (0.0, 1.0)), batch=2, label=1).states.shape)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/nowhere", "TMPDIR": str(tmp_path / "temporary")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "(2, 2)\n", run.stderr


def test_the_library_asks_for_no_executable_stack(points):
    library = aoti._library(points.package, points.spec, points.inputs, "cpu")
    assert elf.with_plain_stack(library) == library


# ---- refusals
def test_labels_beyond_the_classes_are_refused(case):
    for denoiser in (case.denoiser(), aoti.python_denoiser(case.package, case.spec, case.inputs)):
        with pytest.raises(InvalidInput, match="a label is 4; expected 0 to 3, the last of them no label"):
            states(denoiser, batch=2, label=[0, 4])


def changed(package, change):
    """The package after `change(members)`, a dict from name to bytes."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def library_in(members):
    return next(name for name in members if name.endswith(".so"))


def without_library(members):
    del members[library_in(members)]


def two_libraries(members):
    members[library_in(members).replace("/model/", "/other/")] = b""


def library_elsewhere(members):
    name = library_in(members)
    members["archive/" + name.rpartition("/")[2]] = members.pop(name)


def torn_library(members):
    members[library_in(members)] = members[library_in(members)][:5000]


def torn_headers(members):
    members[library_in(members)] = members[library_in(members)][:100]


def no_library(members):
    members[library_in(members)] = b"#!/bin/sh"


def another_library(members):
    with open(native._C.__file__, "rb") as file:
        members[library_in(members)] = file.read()


def without_metadata(members):
    del members[library_in(members).removesuffix(".so") + "_metadata.json"]


def metadata_list(members):
    members[library_in(members).removesuffix(".so") + "_metadata.json"] = b"[]"


def metadata_torn(members):
    members[library_in(members).removesuffix(".so") + "_metadata.json"] = b"{"


def metadata_for(key, value):
    def change(members):
        name = library_in(members).removesuffix(".so") + "_metadata.json"
        members[name] = json.dumps({**json.loads(members[name]), key: value}).encode()

    return change


def outside(members):
    members["archive/../../../etc/planted"] = b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_library, r"holds the libraries \[\]; expected one below data/aotinductor/model"),
        (two_libraries, "expected one below"),
        (library_elsewhere, "expected one below"),
        (torn_library, r"library has 5000 bytes, its headers tell \d+"),
        (torn_headers, "library's headers are damaged"),
        (no_library, r"begins with b'#!/bin'; expected 64-bit ELF"),
        (another_library, "does not export AOTInductorModelContainerCreateWithDevice"),
        (without_metadata, r"holds no .*wrapper_metadata\.json"),
        (metadata_list, r"metadata is \[\]; expected names and values"),
        (metadata_torn, r"is damaged or no \.pt2 file"),
        (metadata_for("inputs", "x s"), "says inputs is 'x s'; expected 'label t x s'"),
        (metadata_for("shape", "3"), "says shape is '3'; expected '2'"),
        (metadata_for("AOTI_DEVICE_KEY", "cuda"), "says AOTI_DEVICE_KEY is 'cuda'; expected 'cpu'"),
        (outside, r"holds 'archive/\.\./\.\./\.\./etc/planted', which points out of it"),
    ],
)
def test_a_package_that_does_not_fit_is_refused(points, change, message):
    with pytest.raises(InvalidArtefact, match=message):
        aoti.denoiser(changed(points.package, change), points.spec, points.inputs)


@pytest.mark.parametrize("opened", [aoti.denoiser, aoti.python_denoiser])
def test_damaged_bytes_are_refused(points, opened, rng):
    flipped = bytearray(points.package)
    at = int(rng.integers(len(flipped) // 2, len(flipped) * 3 // 4))  # inside the library
    flipped[at] ^= 1
    for content in (b"", b"not a package", points.package[:-30], points.package[: len(flipped) // 2], bytes(flipped)):
        with pytest.raises(InvalidArtefact, match=r"damaged or no \.pt2 file .*export it again"):
            opened(content, points.spec, points.inputs)
    with pytest.raises(InvalidInput, match="package is a str; expected the bytes"):
        opened("denoiser.pt2", points.spec, points.inputs)


def test_another_network_than_the_packages_is_refused(points):
    with pytest.raises(InvalidArtefact, match="says shape is '2'; expected '1 8 8'"):
        aoti.denoiser(points.package, Spec(tiny.UNET), points.inputs)
    with pytest.raises(InvalidArtefact, match="says inputs is 'label t x s'; expected 'x s label'"):
        aoti.denoiser(points.package, points.spec, ("x", "s", "label"))
    with pytest.raises(InvalidArtefact, match="AOTI_DEVICE_KEY is 'cpu'; expected 'cuda'"):
        aoti.denoiser(points.package, points.spec, points.inputs, device="cuda")


def test_a_library_of_absurd_size_is_not_unpacked(points, monkeypatch):
    monkeypatch.setattr(aoti, "LARGEST_LIBRARY", 1000)
    with pytest.raises(InvalidArtefact, match=r"library has \d+ bytes; expected at most 1000"):
        aoti.denoiser(points.package, points.spec, points.inputs)


def test_a_missing_torch_names_the_extra(points, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for opened in (aoti.denoiser, aoti.python_denoiser):
        with pytest.raises(BackendUnavailable, match=r'pip install "pyflow-engine\[train\]"'):
            opened(points.package, points.spec, points.inputs)


# ---- building
X, S = torch.zeros(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("examples", "names", "message"),
    [
        ((S,), ("s",), r"names is \('s',\) for 1 examples; expected x and any of"),
        ((X, S), ("x",), "for 2 examples"),
        ((X, S), ("x", "mask"), "expected x and any of s, t, label"),
        ((X.double(), S), ("x", "s"), r"example of x is torch\.float64 \(2, 3\); expected contiguous torch\.float32"),
        ((X, torch.zeros(3)), ("x", "s"), r"example of s is torch\.float32 \(3,\); .* one value a picture"),
        ((X, torch.zeros(2, 1)), ("x", "s"), r"example of s is torch\.float32 \(2, 1\)"),
        ((X[:1], S[:1]), ("x", "s"), "batch of 2 or more"),
        ((torch.zeros(3, 2).T, S), ("x", "s"), "expected contiguous"),
    ],
)
def test_wrong_examples_are_refused(examples, names, message):
    with pytest.raises(InvalidInput, match=message):
        builder.build_package(nn.Identity(), examples, names)


def test_a_missing_compiler_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BackendUnavailable, match=r"found no no-such-compiler: install g\+\+"):
        builder.build_package(nn.Identity(), (X,), ("x",))
