"""The C++ room. Import pyflow.native instead: nothing here checks shapes."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

Floats = npt.NDArray[np.float32]

def isa() -> str: ...
def supported_isas() -> list[str]: ...
def fused_step(
    row: Sequence[float],
    x: Floats,
    cond: Floats,
    uncond: Floats | None,
    guidance: float,
    previous: Floats | None,
    noise: Floats | None,
    mask: Floats | None,
    image: Floats | None,
    noise0: Floats | None,
    out: Floats,
    guided: Floats | None,
    isa: str | None = None,
) -> None: ...
def normal(seed: int, first: int, pictures: int, size: int, row: int, out: Floats, isa: str | None = None) -> None: ...
def philox_words(
    counter: Sequence[int], key: Sequence[int], blocks: int, isa: str | None = None
) -> npt.NDArray[np.uint32]: ...
def to_uint8(pictures: Floats) -> npt.NDArray[np.uint8]: ...

class Denoiser:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def extra(self) -> int: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...

class OnnxDenoiser(Denoiser):
    def __init__(self, library: str, model: bytes, threads: int) -> None: ...

class AotiDenoiser(Denoiser):
    def __init__(
        self,
        library: str,
        torch_library: str,
        shape: Sequence[int],
        extra: int,
        inputs: Sequence[str],
        classes: int,
        device: str,
        staged: bool = False,
    ) -> None: ...

class NetworkDenoiser(Denoiser):
    """Runs a native network in place; `pyflow.native.network_denoiser` makes one."""

    def __init__(self, content: Buffer, isa: str | None, threads: int, profile: bool) -> None: ...
    def describe(self) -> str:
        """An operation a line."""

    def workspace_bytes(self, batch: int) -> int:
        """What a run of this batch allocates when each picture has a label of its own."""

    def take_profile(self) -> list[tuple[str, str, str, float, int]]:
        """(name, kind, algorithm, seconds, calls) of each operation since the last call; with `profile` only."""

class CallableDenoiser(Denoiser):
    def __init__(
        self,
        function: Callable[[Floats, Floats, Floats, npt.NDArray[np.int64], Floats], object],
        shape: Sequence[int],
        extra: int,
    ) -> None: ...

def sample(
    denoiser: Denoiser,
    plan: npt.NDArray[np.float64],
    batch: int,
    seed: int,
    first: int,
    guidance: float,
    label: npt.NDArray[np.int64] | None,
    null_label: int,
    mask: Floats | None,
    image: Floats | None,
    noise0: Floats | None,
    told: Floats | None,
    on_row: Callable[[int], object] | None,
) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
