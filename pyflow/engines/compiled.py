"""torch.compile as a denoiser of the C++ loop: a checkpoint without an export, compiled at its first call."""

import numpy as np
import torch
from torch import nn

from pyflow import native
from pyflow.errors import BackendUnavailable
from pyflow.spec import Spec, extra_of

from .runner import LoopRunner


def runner(model: nn.Module, spec: Spec) -> LoopRunner:
    """Compiled at the first call of one picture, at the first of several, and where torch changes kernels for more."""
    compiled = torch.compile(model, dynamic=True)

    def predict(x: np.ndarray, s: np.ndarray, t: np.ndarray, label: np.ndarray, out: np.ndarray) -> None:
        # Copies: the arrays are read-only views, which from_numpy warns about.
        given = (torch.from_numpy(array.copy()) for array in (x, s, t, label))
        try:
            with torch.no_grad():  # a graph compiled under inference mode is of no use outside it
                torch.from_numpy(out).copy_(compiled(*given))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise BackendUnavailable(
                f"torch.compile failed ({error}): it needs g++; or take backend='eager'"
            ) from error

    return LoopRunner(native.callable_denoiser(predict, spec.network.shape, extra_of(spec.network)))
