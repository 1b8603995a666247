"""The Triton room: `fused_step` and `normal`, the twins of pyflow.core.fused_step and pyflow.noise.normal on a GPU."""

from pyflow.errors import BackendUnavailable

try:
    import torch  # noqa: F401
    import triton  # noqa: F401
except ImportError as error:
    raise BackendUnavailable(
        f"pyflow.kernels needs the package {error.name}; pip install 'pyflow-engine[triton]'"
    ) from error

from .fused_step import fused_step
from .philox import normal, words

__all__ = ["fused_step", "normal", "words"]
