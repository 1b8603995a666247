"""What the inputs of a network's layers are while it samples, as the ranges that uint8 stands for."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pyflow.engines import eager
from pyflow.spec import Spec

from .build import Order
from .packing import Floats, Range
from .quantize import SEED, run_trajectories

SAMPLES = 4096  # values of a layer's input that are kept of each call, beside its extremes
CLIPPED = np.linspace(1, 0.3, 36).tolist()  # the shares of an extreme that are tried


def ranges(model: nn.Module, spec: Spec, order: Order, layers: Sequence[str]) -> dict[str, Range]:
    """The range of each layer's input, over all that the layers are given along the sampler's own trajectories."""
    seen: dict[str, list[Floats]] = {name: [] for name in layers}
    generator = torch.Generator().manual_seed(SEED)

    def record(name: str, given: Tensor) -> None:
        values = given.flatten()
        some = values[torch.randint(len(values), (SAMPLES,), generator=generator)]
        seen[name].append(torch.cat([some, *(extreme[None] for extreme in values.aminmax())]).numpy())

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: record(name, given[0]))
        for name in layers
    ]
    try:
        run_trajectories(eager.runner(model, spec), spec, order)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: best_range(np.concatenate(values)) for name, values in seen.items()}


def best_range(values: Floats) -> Range:
    """The one of least squared error; it holds 0, which is the border of a convolution."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    high = min((share * high for share in CLIPPED), key=lambda clipped: _error(values, low, clipped))
    low = min((share * low for share in CLIPPED), key=lambda clipped: _error(values, clipped, high))
    return _range(low, high)


def _range(low: float, high: float) -> Range:
    scale = (high - low) / 255 or 1.0
    return Range(scale, round(-low / scale))


def _error(values: Floats, low: float, high: float) -> float:
    scale, zero = _range(low, high)
    levels = np.clip(np.rint(values / np.float32(scale)) + zero, 0, 255)
    return float(np.square((levels - zero) * np.float32(scale) - values).sum(dtype=np.float64))
