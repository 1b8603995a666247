"""Export a checkpoint as an engine: trace, prove it against the reference, and only then publish it."""

import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint, core, native
from .artefact import json_bytes, publish, sha256
from .engines import manifest as manifests
from .engines.eager import denoise_function
from .engines.manifest import Certificate, Manifest
from .engines.onnx import BACKEND, MODEL
from .errors import BackendUnavailable, PyflowError
from .noise import normal
from .spec import Spec, refuse_extra_channels
from .timing import versions

BOUND = 1e-5
OFF_BY_ONE_BOUND = 1e-3
BATCHES, STEPS, GUIDANCES = (1, 3, 16), (1, 2, 4), (1.0, 4.0)


class ParityError(PyflowError, ArithmeticError):
    """The exported engine differs from the reference by more than its bound; it was not published."""


def export_onnx(source: Path, folder: Path) -> Manifest:
    """Export the checkpoint `source` as the ONNX engine `folder`, with a dynamic batch and a parity certificate."""
    model, spec = checkpoint.load(source)
    refuse_extra_channels(spec)
    content, inputs = trace(model, spec)
    certificate = certify(content, model, spec)
    manifest = Manifest(
        backend=BACKEND,
        what="denoiser",
        spec=spec,
        inputs=inputs,
        dtype="float32",
        guidance_rule=manifests.GUIDANCE_RULE,
        weights_sha256=checkpoint.weights_sha256(source),
        files={MODEL: sha256(content)},
        versions=versions("pyflow-engine", "torch", "onnx", "onnxruntime"),
        certificate=certificate,
    )
    with publish(folder) as fresh:
        (fresh / MODEL).write_bytes(content)
        (fresh / manifests.NAME).write_bytes(json_bytes(manifest.to_json()))
    return manifest


class _Named(nn.Module):
    """The network with only the inputs that it reads, in the order of `names`."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs))
        s = given["s"]
        return self.model(given["x"], s, given.get("t", s), given.get("label"))


def trace(model: nn.Module, spec: Spec) -> tuple[bytes, tuple[str, ...]]:
    """The network as an ONNX file with a dynamic batch, and the names of its inputs."""
    names = ("x", "s", *(("t",) if spec.network.times == 2 else ()), *(("label",) if spec.network.classes else ()))
    examples = {
        "x": torch.zeros(2, *spec.network.shape),
        "s": torch.zeros(2),
        "t": torch.zeros(2),
        "label": torch.zeros(2, dtype=torch.int64),
    }
    # It warns of torchvision's missing operators, which no network here has.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1, max=2**20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Named(model, names).eval(),
                tuple(examples[name] for name in names),
                input_names=list(names),
                output_names=["prediction"],
                dynamic_shapes={"inputs": tuple({0: batch} for _ in names)},
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # what the dynamo exporter returns
            content = program.model_proto.SerializeToString()
    except ImportError as error:
        raise BackendUnavailable(
            f'export needs onnx and onnxscript ({error}): pip install "pyflow-engine[export]"'
        ) from error
    return content, names


def certify(content: bytes, model: nn.Module, spec: Spec) -> Certificate:
    """Sample through the C++ loop and through the reference loop from fresh noise; ParityError beyond the bound."""
    denoiser = native.onnx_denoiser(content)
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    guidances = GUIDANCES if spec.null_label else (1.0,)
    cases = list(itertools.product(BATCHES, STEPS, guidances))
    worst, changed = 0.0, []
    for batch, steps, guidance in tqdm(cases, desc="certificate", unit="case", leave=False):
        plan = core.euler(spec.math_path, spec.prediction, core.uniform_grid(steps))
        label = _labels(spec, batch, guidance, shift=seed % 1000 + steps)
        expected = reference(model, spec, plan, label, seed, guidance)
        came = native.sample(
            denoiser,
            plan,
            batch=batch,
            seed=seed,
            guidance=guidance,
            label=label.numpy() if spec.network.classes else None,
            null_label=spec.network.classes,
        ).states
        error = float(np.abs(came - expected).max() / np.abs(expected).max()) / max(1.0, guidance)
        differences = _pixel_differences(came, expected)
        if not error <= BOUND or differences.max() > 1:
            raise ParityError(
                f"batch {batch}, {steps} steps, guidance {guidance}, seed {seed}: relative error {error:.2e}, uint8 "
                f"values off by up to {differences.max()}; allowed: {BOUND:.0e}, 1. Nothing was published; a layer may "
                "be exported wrongly"
            )
        worst = max(worst, error)
        changed.append(differences.ravel() > 0)
    # Over all cases: in one small picture a single value at a rounding border is more than the bound.
    off_by_one = float(np.concatenate(changed).mean())
    if off_by_one > OFF_BY_ONE_BOUND:
        raise ParityError(
            f"seed {seed}: {off_by_one:.2%} of uint8 values are off by one; allowed: {OFF_BY_ONE_BOUND:.1%}. Nothing "
            "was published; a layer may be exported wrongly"
        )
    return Certificate(BOUND, worst, off_by_one, BATCHES, STEPS, guidances, len(cases))


def reference(model: nn.Module, spec: Spec, plan: core.Plan, label: Tensor, seed: int, guidance: float) -> np.ndarray:
    """The final states of `core.sample` on the torch model, with the NumPy noise."""
    batch, shape = len(label), spec.network.shape

    def noise(row: int) -> Tensor:
        return torch.from_numpy(normal(seed, 0, batch, int(np.prod(shape)), row)).reshape(batch, *shape)

    return core.sample(denoise_function(model, spec, label), plan, noise, guidance=guidance).numpy()


def _labels(spec: Spec, batch: int, guidance: float, shift: int) -> Tensor:
    """Every label in turn; without guidance the null label too, where the network knows it."""
    count = spec.network.classes + (spec.null_label and guidance == 1.0)
    return (torch.arange(batch) + shift) % max(1, count)


def _pixel_differences(came: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far the uint8 pictures lie apart, value by value; one 0 for points, and for what has no pictures, NaN."""
    if came.ndim != 4 or not np.isfinite(came).all():
        return np.zeros(1, int)
    return np.abs(native.to_uint8(came).astype(int) - native.to_uint8(expected).astype(int))


EXPORTERS: dict[str, Callable[[Path, Path], Manifest]] = {BACKEND: export_onnx}
