"""torch eager as a denoiser of the C++ loop: how a checkpoint is sampled before it is exported."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pyflow import native
from pyflow.spec import Spec, extra_of

from .runner import LoopRunner

BACKEND = "eager"


def runner(model: nn.Module, spec: Spec) -> LoopRunner:
    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        # Copies: the arrays are read-only views, which from_numpy warns about.
        with torch.inference_mode():
            torch.from_numpy(out).copy_(model(*(torch.from_numpy(array.copy()) for array in (x, s, t, label))))

    return LoopRunner(native.callable_denoiser(predict, spec.network.shape, extra_of(spec.network)))


def denoise_function(
    model: nn.Module, spec: Spec, label: Tensor, told: Tensor | None = None
) -> Callable[[Tensor, float, float, bool], Tensor]:
    """The network as `core.sample` wants it, in plain torch: the reference that engines are compared with.

    `told` is what a network that sees the mask is told beside the state.
    """
    null = torch.full_like(label, spec.network.classes)

    @torch.inference_mode()
    def denoise(x: Tensor, s: float, t: float, labelled: bool) -> Tensor:
        times = (torch.full((len(x),), time) for time in (s, t))
        given = x if told is None else torch.cat([x, told], dim=1)
        return model(given, *times, label if labelled else null)

    return denoise
