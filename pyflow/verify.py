"""Prove an engine again, on the machine where it will run; needs neither torch nor the checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from . import certificate, engines
from .engines.manifest import PROOF, Certificate
from .errors import BackendUnavailable, InvalidArtefact, InvalidInput

if TYPE_CHECKING:
    from torch import nn


def verify(
    folder: Path,
    source: Path | None = None,
    *,
    threads: int = 0,
    device: str = "cpu",
    progress: certificate.Progress = iter,
    model: "nn.Module | None" = None,
) -> Certificate:
    """Run every case of the certificate: on fresh noise beside its checkpoint `source`, else against its own proof.

    `model` is the module of a checkpoint whose network is your own.
    """
    runner, manifest, files = engines.open_engine(folder, threads, device)
    if PROOF not in manifest.files:
        raise InvalidArtefact(f"{folder} holds no {PROOF}; the engine is incomplete, export it again")
    proof = bytes(files[PROOF])
    if source is None:
        return certificate.repeat(runner, manifest, proof, progress=progress)
    try:
        from . import checkpoint
    except ImportError as error:
        raise BackendUnavailable(
            f'{source} is a checkpoint, and running one needs torch ({error}): pip install "pyflow-engine[train]", '
            "or verify against the engine's own proof"
        ) from error
    if checkpoint.weights_sha256(source) != manifest.weights_sha256:
        raise InvalidInput(f"{source} holds other weights than {folder} was made of; expected its own checkpoint")
    network, _ = checkpoint.load(source, model)
    return certificate.repeat(runner, manifest, proof, network, progress)
