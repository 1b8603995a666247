"""Export a checkpoint as an engine: build its graphs, prove them against the reference, and only then publish."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from pyflow import certificate, checkpoint, engines
from pyflow.artefact import json_bytes, publish
from pyflow.certificate import ParityError
from pyflow.engines import manifest as manifests
from pyflow.engines.manifest import BOUNDS, Bound, File, Manifest
from pyflow.engines.runner import Runner
from pyflow.errors import InvalidInput
from pyflow.spec import Spec, refuse_other_inputs
from pyflow.timing import versions

from . import aoti, native, onnx, openvino, tensorrt
from .build import Built, Order
from .shapes import Denoiser

BUILDERS: dict[str, Callable[[nn.Module, Spec, Order], Built]] = {
    "onnx": onnx.build,
    "aoti": aoti.build,
    "openvino": openvino.build,
    "tensorrt": tensorrt.build,
    "native": native.build,
}
Judging = Callable[[Runner, Spec], dict[str, Any]]


def export(
    source: Path,
    folder: Path,
    to: str = "onnx",
    order: Order | None = None,
    *,
    bound: Bound | None = None,
    judge: Judging | None = None,
    model: nn.Module | None = None,
) -> Manifest:
    """Export the checkpoint `source` as the engine `folder`; ParityError, and nothing published, beyond its bound.

    `bound` replaces that of the precision. `judge` measures distances to keep in the certificate. `model` is the
    module, where the network is your own.
    """
    if to not in BUILDERS:
        raise InvalidInput(f"--to is {to!r}; expected one of {', '.join(BUILDERS)}")
    order = order or Order()
    network, spec = checkpoint.load(source, model)
    refuse_other_inputs(spec)
    order.check(spec)
    built = BUILDERS[to](network, spec, order)
    draft = Manifest(
        backend=to,
        what=order.what,
        precision=order.precision,
        spec=spec,
        inputs=Denoiser.inputs_of(spec),
        weights_sha256=checkpoint.weights_sha256(source),
        files={},
        requires=built.requires,
        versions=versions("pyflow-engine", *built.packages),
        certificate=None,
        plans=order.plans(spec),
    )
    files, manifest = _prove(draft, built, network, order, bound or BOUNDS[order.precision], judge)
    with publish(folder, replaces=manifests.files_of(folder)) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        (fresh / manifests.NAME).write_bytes(json_bytes(manifest.to_json()))
    return manifest


def _prove(
    draft: Manifest, built: Built, model: nn.Module, order: Order, bound: Bound, judge: Judging | None
) -> tuple[dict[str, bytes], Manifest]:
    """The files with their proof, and the manifest with its certificate."""
    runner = engines.runner(draft, built.files, device=order.device)
    progress = partial(tqdm, desc="certificate", unit="case", leave=False)
    try:
        proved, proof = certificate.prove(runner, model, draft.spec, bound, draft.plans, progress)
    except ParityError as error:
        if built.more_precise is None:
            raise ParityError(f"{error}. Nothing was published; a layer may be exported wrongly") from None
        tqdm.write(f"built again, more precisely: {error}")
        return _prove(draft, built.more_precise(), model, order, bound, judge)
    if judge:
        proved = replace(proved, distances=judge(runner, draft.spec))
    files = {**built.files, manifests.PROOF: proof}
    records = {name: File.of(name, content) for name, content in files.items()}
    return files, replace(draft, files=records, certificate=proved)
