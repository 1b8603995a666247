"""What an engine needs of the machine that runs it, measured where it is made and compared where it is loaded."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pyflow.errors import BackendUnavailable
from pyflow.timing import versions

VECTOR_FLAGS = ("sse4_2", "avx", "fma", "f16c", "bmi", "amx")  # beginnings of the names that compiled code depends on


@cache
def cpu_flags() -> tuple[str, ...]:
    """The instruction sets of this CPU that compilers choose from."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    found = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    return tuple(sorted(flag for flag in found if flag.startswith(VECTOR_FLAGS)))


def torch_for(purpose: str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable(f'{purpose} needs torch ({error}): pip install "pyflow-engine[train]"') from error
    return torch


def gpu() -> str:
    """The architecture of the GPU, such as sm_90, or the empty string."""
    torch = torch_for("an engine for a GPU")
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def release(package: str, numbers: int = 2) -> str:
    """The first numbers of an installed package's version, major and minor unless told, or the empty string."""
    version = versions(package)[package]
    return ".".join(version.split("+")[0].split(".")[:numbers]) if version[0].isdigit() else ""


def _lacks_flags(needed: Any) -> str:
    missing = sorted(set(needed) - set(cpu_flags()))
    return f"needs the instruction sets {', '.join(missing)}, which this CPU lacks" if missing else ""


def _lacks_gpu(needed: Any) -> str:
    here = gpu()
    return "" if here == needed else f"was built for a GPU of architecture {needed}; here is {here or 'none'}"


def _lacks_release(package: str) -> Callable[[Any], str]:
    def lacks(needed: Any) -> str:
        here = release(package, numbers=str(needed).count(".") + 1)
        return "" if here == needed else f"was built with {package} {needed}; here is {here or 'none'}"

    return lacks


CHECKS: dict[str, Callable[[Any], str]] = {
    "cpu": _lacks_flags,
    "gpu": _lacks_gpu,
    "torch": _lacks_release("torch"),
    "tensorrt": _lacks_release("tensorrt"),
    "tensorrt-rtx": _lacks_release("tensorrt-rtx"),
}


def refuse_misfit(name: str, requires: dict[str, Any]) -> None:
    """Say what this machine lacks before anything of the engine is opened."""
    for what, needed in requires.items():
        if what not in CHECKS:
            raise BackendUnavailable(
                f"{name} requires {what} {needed!r}, which this pyflow knows nothing of: upgrade it"
            )
        lack = CHECKS[what](needed)
        if lack:
            raise BackendUnavailable(f"{name} {lack}: export it again on this machine, or take an ONNX engine")
