"""Engines: what runs a network. Each backend is a file whose `open_engine` makes a runner of verified files."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from pyflow.artefact import Content
from pyflow.errors import InvalidArtefact, InvalidInput

from . import host
from . import manifest as manifests
from .manifest import PROOF, Manifest
from .runner import Runner

BACKENDS = ("onnx", "aoti", "openvino", "tensorrt", "native")


def open_engine(
    folder: Path, threads: int = 0, device: str = "cpu", profile: bool = False
) -> tuple[Runner, Manifest, Mapping[str, Content]]:
    """Refuse what can't run here, verify every file, then hand the verified bytes to the backend, and back."""
    manifest, files = _verified(folder)
    return runner(manifest, files, threads, device, profile), manifest, files


def _verified(folder: Path) -> tuple[Manifest, Mapping[str, Content]]:
    manifest = manifests.read(folder)
    if manifest.backend not in BACKENDS:
        raise InvalidArtefact(
            f"{folder} is a {manifest.backend!r} engine; this pyflow runs {', '.join(BACKENDS)}: upgrade pyflow"
        )
    host.refuse_misfit(str(folder), manifest.requires)
    try:
        return manifest, manifests.payload(folder, manifest)
    except InvalidArtefact:
        if manifests.read(folder) != manifest:  # an export published the next engine between the two reads
            return _verified(folder)
        raise


def runner(
    manifest: Manifest, files: Mapping[str, Content], threads: int = 0, device: str = "cpu", profile: bool = False
) -> Runner:
    """The runner of files that were verified, or made just now; with `profile` it times each operation."""
    backend = import_module(f"pyflow.engines.{manifest.backend}")
    if profile and not hasattr(backend, "open_profiled"):
        raise InvalidInput(f"profile is True; a {manifest.backend} engine tells no operations: take a native one")
    opens = backend.open_profiled if profile else backend.open_engine
    try:
        opened: Runner = opens(manifest, files, threads, device)
    except KeyError as error:
        held = ", ".join(name for name in files if name != PROOF)
        raise InvalidArtefact(f"the engine lacks {error}; it holds {held}: export it again") from error
    return opened
