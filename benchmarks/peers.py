"""The runtimes that `make bench-cpu` compares, each set as those who know it would, over the weights of one checkpoint.

python benchmarks/peers.py FOLDER NAME BATCH THREADS    one in a process of its own: seconds and memory

Nothing here imports torch unless the runtime needs it, so that such a process is the runtime alone.
"""

import argparse
import json
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pyflow import core, native
from pyflow.artefact import sha256_of_pieces
from pyflow.spec import Spec

CHECKPOINT, SPEC, GRAPH = "checkpoint", "spec.json", "denoiser.onnx"
Opener = Callable[[Path, Spec, int, int], native.Denoiser]


@dataclass(frozen=True)
class Peer:
    """A runtime: its class of precision, the file that it opens, and what it imports before that.

    One that is opened for each batch has its shapes fixed, which is how it is fastest.
    """

    name: str
    precision: str
    file: str
    open: Opener
    imports: tuple[str, ...] = ()
    per_batch: bool = False

    def file_for(self, batch: int) -> str:
        return self.file.format(batch=batch)

    @property
    def compiles(self) -> bool:
        """With a C++ compiler, for minutes."""
        return self.file.endswith((".pt2", ".compiled"))

    @property
    def native(self) -> bool:
        return self.name.startswith("native")


def inputs_of(spec: Spec) -> tuple[str, ...]:
    network = spec.network
    return ("x", "s", *(("t",) if network.times == 2 else ()), *(("label",) if network.classes else ()))


# ---- torch
def open_eager(folder: Path, spec: Spec, batch: int, threads: int) -> native.Denoiser:
    import torch

    from pyflow import checkpoint

    torch.set_num_threads(threads)
    model, _ = checkpoint.load(folder / CHECKPOINT)
    return _torch_denoiser(denoiser_of(model, spec, "fp32"), spec, torch.inference_mode)


def open_compiled(precision: str, folder: Path, spec: Spec, batch: int, threads: int) -> native.Denoiser:
    """Frozen weights and a fixed batch."""
    import torch

    from pyflow import checkpoint

    torch.set_num_threads(threads)
    model, _ = checkpoint.load(folder / CHECKPOINT)
    compiled = torch.compile(denoiser_of(model, spec, precision), dynamic=False, options={"freezing": True})
    return _torch_denoiser(compiled, spec, torch.no_grad)


def denoiser_of(model: Any, spec: Spec, precision: str) -> Any:
    """The network with the inputs that it reads. Batch 16 of the 1.4M net in float32: 88 ms as it comes, 44 ms so."""
    import torch

    from pyflow.export.shapes import DTYPES, Denoiser

    return Denoiser(model, spec, DTYPES[precision]).to(memory_format=torch.channels_last)


def _torch_denoiser(module: Any, spec: Spec, without_gradients: Callable[[], Any]) -> native.Denoiser:
    import torch

    names = inputs_of(spec)

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        given = {"x": x, "s": s, "t": t, "label": label}
        with without_gradients():  # copies: the arrays are read-only views, which from_numpy warns about
            torch.from_numpy(out).copy_(module(*(torch.from_numpy(given[name].copy()) for name in names)))

    return native.callable_denoiser(predict, spec.network.shape)


def open_package(precision: str, folder: Path, spec: Spec, batch: int, threads: int) -> native.Denoiser:
    """An AOTInductor package by torch's own loader; the project's takes packages of any batch only."""
    import torch
    from torch._inductor import aoti_load_package

    torch.set_num_threads(threads)
    return _torch_denoiser(aoti_load_package(str(folder / f"{precision}-{batch}.pt2")), spec, torch.inference_mode)


# ---- ONNX Runtime and OpenVINO
def open_onnx(file: str, folder: Path, spec: Spec, batch: int, threads: int) -> native.Denoiser:
    return native.onnx_denoiser((folder / file).read_bytes(), threads)


def open_python_onnx(folder: Path, spec: Spec, batch: int, threads: int) -> native.Denoiser:
    """As it is used without pyflow: from the path of its file, called from Python."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    names = inputs_of(spec)

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        given = {"x": x, "s": s, "t": t, "label": label}
        out[...] = session.run(None, {name: given[name] for name in names})[0]

    return native.callable_denoiser(predict, spec.network.shape)


def open_openvino(file: str, hint: str, folder: Path, spec: Spec, batch: int, threads: int) -> native.Denoiser:
    """A fixed batch (1.4M, batches 1 and 16: 6.9 and 67 ms with any batch, 5.3 and 60 ms so), and inputs in place.

    Around int8 it computes in bfloat16: 24 ms at batch 16, 52 ms in float32.
    """
    from pyflow.engines.openvino import package

    runtime = package().Core()
    model = runtime.read_model(folder / file)
    model.reshape({port: [batch, *(d.get_length() for d in list(port.partial_shape)[1:])] for port in model.inputs})
    order = [port.any_name for port in model.inputs]
    if hint == "bf16":  # what leads to an output stays float32: an angle of 100 radians needs it
        model.add_outputs([node.output(0) for node in model.get_ordered_ops() if node.get_type_name() == "Sin"])
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    limits = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    request = runtime.compile_model(model, "CPU", {**settings, **limits}).create_infer_request()

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        given = {"x": x, "s": s, "t": t, "label": label}
        out[...] = request.infer([given[name] for name in order], share_inputs=True, share_outputs=True)[0]

    return native.callable_denoiser(predict, spec.network.shape)


# ---- ours
def open_native(file: str, folder: Path, spec: Spec, batch: int, threads: int, *, profile: bool = False) -> Any:
    with (folder / file).open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return native.network_denoiser(content, threads, profile=profile)


ORT, OV, TORCH = ("onnxruntime",), ("openvino",), ("torch",)
PEERS = (
    Peer("torch eager fp32", "fp32", CHECKPOINT, open_eager, TORCH),
    Peer("torch.compile fp32", "fp32", "fp32-{batch}.compiled", partial(open_compiled, "fp32"), TORCH, per_batch=True),
    Peer("AOTInductor fp32", "fp32", "fp32-{batch}.pt2", partial(open_package, "fp32"), TORCH, per_batch=True),
    Peer("ONNX Runtime fp32", "fp32", GRAPH, partial(open_onnx, GRAPH)),
    Peer("ONNX Runtime fp32, Python", "fp32", GRAPH, open_python_onnx, ORT),
    Peer("OpenVINO fp32", "fp32", GRAPH, partial(open_openvino, GRAPH, "f32"), OV, per_batch=True),
    Peer("torch.compile bf16", "bf16", "bf16-{batch}.compiled", partial(open_compiled, "bf16"), TORCH, per_batch=True),
    Peer("AOTInductor bf16", "bf16", "bf16-{batch}.pt2", partial(open_package, "bf16"), TORCH, per_batch=True),
    Peer("OpenVINO bf16", "bf16", GRAPH, partial(open_openvino, GRAPH, "bf16"), OV, per_batch=True),
    Peer("ONNX Runtime int8", "int8", "int8.onnx", partial(open_onnx, "int8.onnx")),
    Peer("OpenVINO int8", "int8", "int8.onnx", partial(open_openvino, "int8.onnx", "bf16"), OV, per_batch=True),
    Peer(
        "OpenVINO int8, all layers",
        "int8",
        "int8-all.onnx",
        partial(open_openvino, "int8-all.onnx", "bf16"),
        OV,
        per_batch=True,
    ),
    Peer("native fp32", "fp32", "native-fp32.bin", partial(open_native, "native-fp32.bin")),
    Peer("native bf16", "bf16", "native-bf16.bin", partial(open_native, "native-bf16.bin")),
    Peer("native int8", "int8", "native-int8.bin", partial(open_native, "native-int8.bin")),
)


# ---- one call, and one process
def labels_of(spec: Spec, batch: int) -> np.ndarray | None:
    return np.arange(batch) % spec.network.classes if spec.network.classes else None


def forward(
    denoiser: native.Denoiser, spec: Spec, batch: int, row: core.Row | None = None, x: np.ndarray | None = None
) -> np.ndarray:
    """What the network makes of `x`, by default of noise, at the times of `row`."""
    s, t = (row.s, row.t) if row else (0.0, 1.0)
    plan = [core.Row(s, t, a=0.0, b=1.0, h=0.0, n=0.0, ka=1.0, ks=0.0)]
    return native.sample(denoiser, plan, batch=batch, label=labels_of(spec, batch), noise0=x).states


def start(folder: Path, name: str, batch: int, threads: int) -> dict[str, float]:
    """Seconds of the import, the load and the first call, and how far the peak of memory rose after the import."""
    peer = next(peer for peer in PEERS if peer.name == name)
    spec = Spec.from_json(json.loads((folder / SPEC).read_text()), SPEC)
    began = time.perf_counter()
    for module in peer.imports:
        import_module(module)
    imported, before = time.perf_counter(), _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    denoiser = peer.open(folder, spec, batch, threads)
    loaded = time.perf_counter()
    forward(denoiser, spec, batch)
    ended, after = time.perf_counter(), _memory("VmHWM")
    hashed = {"hash_s": _hashing(folder / peer.file)} if peer.native else {}
    return {
        **hashed,
        "import_s": imported - began,
        "load_s": loaded - imported,
        "first_s": ended - loaded,
        "import_mb": before / 1e6,
        "memory_mb": (after - before) / 1e6,
    }


def _hashing(path: Path) -> float:
    """What `pyflow.load` adds to the load of an engine."""
    content, began = path.read_bytes(), time.perf_counter()
    sha256_of_pieces(content)
    return time.perf_counter() - began


def _memory(name: str) -> int:
    """Of this program: what getrusage tells of a peak begins with that of the process which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("batch", type=int)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    print(json.dumps(start(given.folder, given.name, given.batch, given.threads)))


if __name__ == "__main__":
    main()
