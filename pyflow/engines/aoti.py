"""AOTInductor packages: a network compiled to one library, called from the C++ loop or through torch's own loader."""

import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from pyflow import native
from pyflow.errors import InvalidArtefact, InvalidInput
from pyflow.spec import Spec, extra_of, input_shape

from . import elf, host
from .manifest import Manifest
from .runner import LoopRunner, Runner

PACKAGE = "denoiser.pt2"
LARGEST_LIBRARY, LARGEST_METADATA = 2**32, 2**20  # weights included


def open_engine(manifest: Manifest, files: Mapping[str, bytes], threads: int, device: str) -> Runner:
    """The number of threads is the package's own: it was compiled for it."""
    compiled_for = "cuda" if "gpu" in manifest.requires else "cpu"
    if device.partition(":")[0] != compiled_for:
        raise InvalidInput(
            f"device is {device!r}; this engine was compiled for {compiled_for}: ask for device={compiled_for!r}, or "
            "export it again where it is to run"
        )
    return LoopRunner(denoiser(files[PACKAGE], manifest.spec, manifest.inputs, device))


def denoiser(package: bytes, spec: Spec, inputs: tuple[str, ...], device: str = "cpu") -> native.Denoiser:
    """The network called from C++ through AOTInductor's C interface; `inputs` are its own, in its order."""
    torch = host.torch_for("an AOTInductor engine")
    library = _library(package, spec, inputs, device.partition(":")[0])
    # The loader maps the file, which may then go; the kernels of a GPU lie in it too. glibc keeps the mapping until the
    # threads that called the network have ended, so a process that loads it often grows by the file each time.
    with tempfile.TemporaryDirectory(prefix="pyflow-") as folder:
        path = Path(folder, "network.so")
        path.write_bytes(library)
        return native.aoti_denoiser(
            path,
            torch_library=torch_library(torch),
            shape=spec.network.shape,
            extra=extra_of(spec.network),
            inputs=inputs,
            classes=spec.network.classes,
            device=device,
        )


def python_denoiser(package: bytes, spec: Spec, inputs: tuple[str, ...]) -> native.Denoiser:
    """The same package run by torch's loader and called from Python: slower at small sizes, equal bit for bit."""
    torch = host.torch_for("an AOTInductor engine")
    _library(package, spec, inputs, "cpu")
    from torch._inductor import aoti_load_package

    classes = spec.network.classes
    try:
        compiled = aoti_load_package(io.BytesIO(package))
    except RuntimeError as error:
        raise InvalidArtefact(f"torch cannot load the package ({error}); export it again") from error

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        if "label" in inputs and label.max() > classes:
            raise InvalidInput(f"a label is {label.max()}; expected 0 to {classes}, the last of them no label")
        given = {"x": x, "s": s, "t": t, "label": label}
        # Copies: the arrays are read-only views, which from_numpy warns about.
        prediction = compiled(*(torch.from_numpy(given[name].copy()) for name in inputs))
        if tuple(prediction.shape) != out.shape or prediction.dtype != torch.float32:
            raise InvalidArtefact(
                f"the compiled network made {prediction.dtype} {tuple(prediction.shape)}; expected torch.float32 "
                f"{out.shape}: export it again"
            )
        out[...] = prediction.numpy()

    return native.callable_denoiser(predict, spec.network.shape, extra_of(spec.network))


def torch_library(torch: ModuleType) -> Path:
    """Holds the C interface of every device."""
    return Path(str(torch.__file__)).with_name("lib") / "libtorch_cpu.so"


def _library(package: bytes, spec: Spec, inputs: tuple[str, ...], device: str) -> bytes:
    """The compiled network in a package, of which the loader needs nothing else; refused unless it is the spec's."""
    if not isinstance(package, bytes):
        raise InvalidInput(f"package is a {type(package).__name__}; expected the bytes of a .pt2 file")
    try:
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            library, told = _members(archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise InvalidArtefact(f"the package is damaged or no .pt2 file ({error}); export it again") from error
    expected = {
        "AOTI_DEVICE_KEY": device,
        "inputs": " ".join(inputs),
        "shape": " ".join(map(str, input_shape(spec.network))),
    }
    for key, value in expected.items():
        if told.get(key) != value:
            raise InvalidArtefact(f"the package says {key} is {told.get(key)!r}; expected {value!r}: export it again")
    elf.refuse_torn(library)
    return library


def _members(archive: zipfile.ZipFile) -> tuple[bytes, dict[str, Any]]:
    names = archive.namelist()
    for name in names:
        # torch's loader unpacks every name below a folder of its own.
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise InvalidArtefact(f"the package holds {name!r}, which points out of it; do not use it")
    libraries = [name for name in names if name.endswith(".so")]
    if len(libraries) != 1 or PurePosixPath(libraries[0]).parts[-4:-1] != ("data", "aotinductor", "model"):
        raise InvalidArtefact(
            f"the package holds the libraries {libraries}; expected one below data/aotinductor/model: export it again"
        )
    size = archive.getinfo(libraries[0]).file_size
    if size > LARGEST_LIBRARY:
        raise InvalidArtefact(f"the package's library has {size} bytes; expected at most {LARGEST_LIBRARY}")
    metadata = libraries[0].removesuffix(".so") + "_metadata.json"
    if metadata not in names:
        raise InvalidArtefact(f"the package holds no {PurePosixPath(metadata).name}; export it again")
    size = archive.getinfo(metadata).file_size
    if size > LARGEST_METADATA:
        raise InvalidArtefact(f"the package's metadata has {size} bytes; expected at most {LARGEST_METADATA}")
    told = json.loads(archive.read(metadata))
    if not isinstance(told, dict):
        raise InvalidArtefact(f"the package's metadata is {told!r}; expected names and values: export it again")
    return archive.read(libraries[0]), told
