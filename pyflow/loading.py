"""`load`: an engine or a checkpoint as a `Flow`, whoever is to run it."""

from pathlib import Path
from typing import TYPE_CHECKING

from . import engines
from .artefact import json_bytes, sha256
from .engines import manifest as manifests
from .errors import BackendUnavailable, InvalidArtefact, InvalidInput
from .sampler import Flow, count
from .spec import refuse_other_inputs

if TYPE_CHECKING:
    from torch import nn

THREADS_LIMIT = 1024


def load(
    source: str | Path,
    *,
    threads: int = 0,
    device: str = "cpu",
    backend: str | None = None,
    precision: str | None = None,
    profile: bool = False,
    model: "nn.Module | None" = None,
) -> Flow:
    """Open an engine folder or a checkpoint folder; every file's hash is checked before the file is used.

    `threads` are the threads of one network call; 0: what its runtime takes, one a physical core for ONNX, one a
    processor for a native engine. `device` is where it runs: cpu, cuda, or for an ONNX engine tensorrt. `backend` says
    how a checkpoint runs, eager or compile, and on cuda `precision` in what, fp32 or bf16; an engine has its own. With
    `profile`, `flow.timings` tells where a native engine's time went. `model` is the module of a checkpoint whose
    network is your own; its engine needs none.
    """
    folder = Path(source)
    threads = count("threads", threads, 0, THREADS_LIMIT)
    if manifests.is_engine(folder):
        named = None if model is None else type(model).__name__
        for name, given in (("backend", backend), ("precision", precision), ("model", named)):
            if given is not None:
                raise InvalidInput(f"{name} is {given!r}; expected None: {folder} is an engine, which has its own")
        runner, manifest, _ = engines.open_engine(folder, threads, device, profile)
        identity = sha256(json_bytes({name: file.sha256 for name, file in sorted(manifest.files.items())}))
        return Flow(runner, manifest.spec, manifest.backend, identity)
    if (folder / "spec.json").is_file():
        if profile:
            raise InvalidInput(f"profile is True; {folder} is a checkpoint: expected an engine exported --to native")
        return _load_checkpoint(folder, threads, device, backend or "eager", precision or "fp32", model)
    if not folder.exists():
        raise InvalidArtefact(
            f"{folder} does not exist; expected an engine or checkpoint folder (`pyflow demo` makes some)"
        )
    raise InvalidArtefact(f"{folder} holds neither manifest.json (an engine) nor spec.json (a checkpoint)")


def _load_checkpoint(
    folder: Path, threads: int, device: str, backend: str, precision: str, module: "nn.Module | None"
) -> Flow:
    if backend not in ("eager", "compile"):
        raise InvalidInput(f"backend is {backend!r}; a checkpoint runs by eager or compile")
    if device not in ("cpu", "cuda"):
        raise InvalidInput(f"device is {device!r}; a checkpoint runs on cpu or cuda")
    precisions = ("fp32", "bf16") if device == "cuda" else ("fp32",)
    if precision not in precisions:
        raise InvalidInput(
            f"precision is {precision!r}; a checkpoint on {device} runs in {' or '.join(precisions)}: export an engine"
        )
    try:
        import torch

        from . import checkpoint
        from .engines import eager
    except ImportError as error:
        raise BackendUnavailable(
            f'{folder} is a checkpoint, and running one needs torch ({error}): pip install "pyflow-engine[train]", '
            "or export it to an engine where torch is"
        ) from error
    if threads:
        torch.set_num_threads(threads)
    model, spec = checkpoint.load(folder, module)
    refuse_other_inputs(spec)
    identity = checkpoint.weights_sha256(folder)
    if device == "cuda":
        from .engines.cuda import CudaRunner

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        return Flow(CudaRunner(model, spec, device, dtype, compile=backend == "compile"), spec, "cuda", identity)
    if backend == "compile":
        from .engines import compiled

        return Flow(compiled.runner(model, spec), spec, backend, identity)
    return Flow(eager.runner(model, spec), spec, backend, identity)
