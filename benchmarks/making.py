"""The files that runtimes open, made from a checkpoint; one in a process of its own, which may be ended.

python benchmarks/making.py FOLDER FILE    FOLDER/checkpoint as that file
"""

import argparse
import io
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from peers import CHECKPOINT, GRAPH, denoiser_of, forward, open_compiled

from pyflow import checkpoint
from pyflow.export import BUILDERS, quantize
from pyflow.export.build import Order
from pyflow.export.onnx import trace
from pyflow.spec import Spec


def make(folder: Path, file: str) -> bytes:
    """What the file holds; the batch of a compiled one is the number behind its precision."""
    torch.set_num_threads(1)
    model, spec = checkpoint.load(folder / CHECKPOINT)
    name, _, kind = file.rpartition(".")
    if file == GRAPH:
        return trace(denoiser_of(model, spec, "fp32"), spec).SerializeToString()
    if kind == "onnx":
        return _quantized(folder, spec, every_layer=name == "int8-all")
    if kind == "bin":
        (content,) = BUILDERS["native"](model, spec, Order(precision=name.removeprefix("native-"))).files.values()
        return content
    precision, _, batch = name.partition("-")
    if kind == "pt2":
        return _package(denoiser_of(model, spec, precision), spec, int(batch))
    forward(open_compiled(precision, folder, spec, int(batch), threads=1), spec, int(batch))
    return b"what was compiled lies in inductor's own cache"


def _package(denoiser: Any, spec: Spec, batch: int) -> bytes:
    """For one batch, its weights frozen, its products tuned.

    The project's packages of any batch take 10-17% more at batch 1 and 5-9% at 16 in float32, 26-29% and 3-5% in
    bfloat16 (1.4M).
    """
    from torch._inductor import aoti_compile_and_package  # a second to import, for those who compile

    settings = {"freezing": True, "max_autotune": True, "cpp.threads": 1}
    content = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(denoiser, denoiser.examples(spec, batch))
        aoti_compile_and_package(program, package_path=content, inductor_configs=settings)
    return content.getvalue()


def _quantized(folder: Path, spec: Spec, every_layer: bool) -> bytes:
    """The project's own choice of layers, or all of them, as runtimes quantise by themselves.

    NNCF's quantisation for OpenVINO is no peer: 24.3 ms with an error of 5e-2 where all layers take 22.6 ms with 4.5e-2
    (1.4M, batch 16).
    """
    graph = onnx.load(folder / GRAPH)
    feeds = quantize.trajectories({GRAPH: graph}, spec, Order(precision="int8"))[GRAPH]
    made = _with_all_int8(folder / GRAPH, feeds) if every_layer else quantize.with_int8(graph, feeds, spec.network)
    return made.SerializeToString()


def _with_all_int8(source: Path, feeds: Sequence[Mapping[str, np.ndarray]]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as place:
        target = Path(place, "int8.onnx")
        quantization.quantize_static(
            source,
            target,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        return onnx.load(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file")
    given = parser.parse_args()
    target = given.folder / given.file
    unfinished = target.with_suffix(".unfinished")
    unfinished.write_bytes(make(given.folder, given.file))
    unfinished.replace(target)


if __name__ == "__main__":
    main()
