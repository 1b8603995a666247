"""The native engine: a network as an operation list (graph.py) that the C++ executor runs, on any CPU."""

from collections.abc import Mapping
from pathlib import Path

from pyflow import native
from pyflow.artefact import Content
from pyflow.errors import InvalidArtefact, InvalidInput

from . import manifest as manifests
from .manifest import DENOISER, NETWORK, Manifest
from .runner import LoopRunner, Runner, refuse_misfit

BACKEND = "native"


class ProfiledRunner(LoopRunner):
    """A loop that knows where the time of its network went."""

    denoiser: native.NetworkDenoiser

    def take_profile(self) -> dict[str, float]:
        """Seconds by operation, of all calls since the last look."""
        return {name: seconds for name, _, _, seconds, _ in self.denoiser.take_profile()}


def open_engine(manifest: Manifest, files: Mapping[str, Content], threads: int, device: str) -> Runner:
    return LoopRunner(_denoiser(manifest, files, threads, device, profile=False))


def open_profiled(manifest: Manifest, files: Mapping[str, Content], threads: int, device: str) -> Runner:
    return ProfiledRunner(_denoiser(manifest, files, threads, device, profile=True))


def _denoiser(
    manifest: Manifest, files: Mapping[str, Content], threads: int, device: str, profile: bool
) -> native.NetworkDenoiser:
    if device != "cpu":
        raise InvalidInput(f"device is {device!r}; a native engine runs on 'cpu': for a GPU take --to tensorrt")
    if manifest.what != DENOISER:
        raise InvalidArtefact(f"the engine is a native {manifest.what}; expected a {DENOISER}: export it again")
    denoiser = native.network_denoiser(files[NETWORK], threads, profile=profile)
    refuse_misfit(denoiser, manifest)
    return denoiser


def operations(folder: Path | None) -> str:
    """What `folder`, a native engine, does in one network call: an operation a line."""
    if folder is None or not manifests.is_engine(folder):
        raise InvalidInput(f"--graph came with {folder}; expected the folder of a native engine")
    manifest = manifests.read(folder)
    if manifest.backend != BACKEND:
        raise InvalidInput(
            f"--graph came with {folder}, an engine of {manifest.backend}; expected one exported --to {BACKEND}"
        )
    files = manifests.payload(folder, manifest)
    if NETWORK not in files:
        raise InvalidArtefact(f"{folder} lacks {NETWORK}; it holds {', '.join(files)}: export it again")
    return native.network_denoiser(files[NETWORK], threads=1).describe()
