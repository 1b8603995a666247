"""Where the kernels run: on an NVIDIA GPU, or on the CPU in Triton's interpreter."""

from functools import cache

import torch
from triton import knobs

from pyflow.errors import BackendUnavailable, InvalidInput

# triton.jit reads TRITON_INTERPRET when it meets a kernel, which is when the files beside this one are imported.
INTERPRETED = knobs.runtime.interpret


@cache
def _gpu_is_here() -> bool:
    return torch.cuda.is_available()


def require_gpu(device: torch.device) -> None:
    """Refuse a device on which the kernels cannot run."""
    if INTERPRETED:
        return
    if not _gpu_is_here():
        raise BackendUnavailable(
            "the Triton kernels need an NVIDIA GPU and torch sees none; sample with another backend, or set "
            "TRITON_INTERPRET=1 before Python starts to run them, slowly, on the CPU"
        )
    if device.type != "cuda":
        raise InvalidInput(f"the tensors are on {device}; expected a CUDA device")
