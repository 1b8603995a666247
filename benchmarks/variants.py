"""The three ways to run one plan that the benchmarks compare; all make the same states from the same seed."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from pyflow import core, native
from pyflow.engines.eager import denoise_function
from pyflow.noise import normal
from pyflow.spec import Spec

MODEL = "denoiser.onnx"
EAGER, PYTHON_ONNX, CPP_ONNX = "python, torch eager", "python, onnxruntime", "c++, onnxruntime"
THREADS = int(os.environ.get("PYFLOW_BENCH_THREADS", "1"))
Variant = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A network with random weights: as a torch model and as an exported engine."""

    model: torch.nn.Module
    spec: Spec
    engine: Path


def plan_of(spec: Spec, steps: int) -> core.Plan:
    return core.euler(spec.math_path, spec.prediction, core.uniform_grid(steps))


def eager(model: torch.nn.Module, spec: Spec, plan: core.Plan, batch: int) -> Variant:
    labels = torch.zeros(batch, dtype=torch.int64)
    denoise = denoise_function(model, spec, labels)
    return lambda: core.sample(denoise, plan, lambda row: torch.from_numpy(_noise(spec, batch, row))).numpy()


def python_onnx(engine: Path, spec: Spec, plan: core.Plan, batch: int, threads: int) -> Variant:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(engine / MODEL, options, providers=["CPUExecutionProvider"])
    labels = {"label": np.zeros(batch, np.int64)} if spec.network.classes else {}

    def denoise(x: np.ndarray, s: float, t: float, labelled: bool) -> np.ndarray:
        return session.run(None, {"x": x, "s": np.full(batch, s, np.float32), **labels})[0]

    return lambda: core.sample(denoise, plan, lambda row: _noise(spec, batch, row))


def cpp_onnx(engine: Path, spec: Spec, plan: core.Plan, batch: int, threads: int) -> Variant:
    denoiser = native.onnx_denoiser((engine / MODEL).read_bytes(), threads)
    label = 0 if spec.network.classes else None
    return lambda: native.sample(denoiser, plan, batch=batch, label=label).states


def _noise(spec: Spec, batch: int, row: int) -> np.ndarray:
    shape = spec.network.shape
    return normal(0, 0, batch, int(np.prod(shape)), row).reshape(batch, *shape)
