"""The native engine: a network as an operation list (graph.py) that the C++ executor runs, on any CPU."""

from collections.abc import Mapping
from pathlib import Path

from pyflow import native
from pyflow.artefact import Content
from pyflow.errors import InvalidArtefact, InvalidInput

from . import manifest as manifests
from .manifest import DENOISER, NETWORK, Manifest
from .runner import LoopRunner, Runner

BACKEND = "native"


def open_engine(manifest: Manifest, files: Mapping[str, Content], threads: int, device: str) -> Runner:
    if device != "cpu":
        raise InvalidInput(f"device is {device!r}; a native engine runs on 'cpu': for a GPU take --to tensorrt")
    if manifest.what != DENOISER:
        raise InvalidArtefact(f"the engine is a native {manifest.what}; expected a {DENOISER}: export it again")
    denoiser, shape = native.network_denoiser(files[NETWORK], threads), manifest.spec.network.shape
    if denoiser.shape != shape or set(denoiser.inputs) != set(manifest.inputs):
        raise InvalidArtefact(
            f"the network takes {denoiser.inputs} and makes {denoiser.shape}, its manifest says "
            f"{manifest.inputs} and {shape}; export it again"
        )
    return LoopRunner(denoiser)


def operations(folder: Path | None) -> str:
    """What `folder`, a native engine, does in one network call: an operation a line."""
    if folder is None or not manifests.is_engine(folder):
        raise InvalidInput(f"--graph came with {folder}; expected the folder of a native engine")
    manifest = manifests.read(folder)
    if manifest.backend != BACKEND:
        raise InvalidInput(
            f"--graph came with {folder}, an engine of {manifest.backend}; expected one exported --to {BACKEND}"
        )
    return native.network_denoiser(manifests.payload(folder, manifest)[NETWORK], threads=1).describe()
