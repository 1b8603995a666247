"""ONNX Runtime on the CPU, called from C++ through its function table; needs no torch."""

from pathlib import Path

from pyflow import native
from pyflow.errors import InvalidArtefact

from . import manifest as manifests
from .manifest import Manifest

BACKEND = "onnx"
MODEL = "denoiser.onnx"


def open_engine(folder: Path, threads: int) -> tuple[native.Denoiser, Manifest]:
    """Verify every file against the manifest, then hand the verified bytes to ONNX Runtime."""
    manifest = manifests.read(folder)
    if manifest.backend != BACKEND or MODEL not in manifest.files:
        raise InvalidArtefact(
            f"{folder} is a {manifest.backend!r} engine; this pyflow runs {BACKEND!r}: upgrade pyflow"
        )
    denoiser = native.onnx_denoiser(manifests.payload(folder, manifest)[MODEL], threads)
    if denoiser.shape != manifest.spec.network.shape or set(denoiser.inputs) != set(manifest.inputs):
        raise InvalidArtefact(
            f"{folder}: the model takes {denoiser.inputs} and makes {denoiser.shape}, its manifest says "
            f"{manifest.inputs} and {manifest.spec.network.shape}; export it again"
        )
    return denoiser, manifest
