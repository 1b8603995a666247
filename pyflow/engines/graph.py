"""A native network as data, and as the bytes of its file: csrc/network/graph.hpp says what every field means."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pyflow.errors import InvalidInput

MAGIC, VERSION = b"pyflow\0n", 1
NONE, NO_WEIGHTS = 2**32 - 1, 2**64 - 1
ALIGNMENT = 64  # of every block of weights
LONGEST_NAME = 39


class Type(IntEnum):
    F32, BF16, U8, S8 = range(4)


class Kind(IntEnum):
    LOAD, WAVES, LABEL, PREPARE, CONVOLVE, ATTEND, STORE = range(7)


class Algorithm(IntEnum):
    DIRECT, WINOGRAD2, WINOGRAD4, WINOGRAD2X4 = range(4)


def _words(*names: str) -> list[tuple[str, str]]:
    return [(name, "<u4") for name in names]


HEADER = np.dtype(
    [
        ("magic", "V8"),
        *_words("version", "buffers", "tensors", "operations"),
        *_words("channels", "height", "width", "times", "classes", "points"),
        *(("weights_offset", "<u8"), ("weights_bytes", "<u8")),
    ]
)
BUFFER = np.dtype(_words("height", "width", "channels", "border", "type"))
TENSOR = np.dtype(_words("buffer", "offset", "channels"))
OPERATION = np.dtype(
    [
        *_words("kind", "input", "other", "output", "taps", "stride", "algorithm", "weights_type"),
        *_words("silu", "groups", "upsample", "heads", "film_offset"),
        *(("epsilon", "<f4"), ("scale", "<f4"), ("zero", "<u4")),
        *(("weights", "<u8"), ("bias", "<u8"), ("scales", "<u8"), ("name", "S40")),
    ]
)


@dataclass(frozen=True)
class Buffer:
    height: int
    width: int
    channels: int
    border: int = 0
    type: Type = Type.F32


@dataclass(frozen=True)
class Tensor:
    buffer: int
    offset: int
    channels: int


@dataclass(frozen=True)
class Operation:
    kind: Kind
    name: str
    input: int = NONE
    other: int = NONE
    output: int = NONE
    taps: int = 1
    stride: int = 1
    algorithm: Algorithm = Algorithm.DIRECT
    weights_type: Type = Type.F32
    silu: bool = False
    groups: int = 0
    upsample: int = 1
    heads: int = 0
    film_offset: int = 0
    epsilon: float = 0.0
    scale: float = 0.0
    zero: int = 0
    weights: int = NO_WEIGHTS
    bias: int = NO_WEIGHTS
    scales: int = NO_WEIGHTS


@dataclass
class Graph:
    """A network of states (channels, height, width), which grows by its buffers, tensors, weights and operations."""

    shape: tuple[int, ...]
    times: int
    classes: int
    buffers: list[Buffer] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    weights: list[bytes] = field(default_factory=list)
    weights_bytes: int = 0

    def buffer(self, buffer: Buffer) -> int:
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def part(self, buffer: int, offset: int, channels: int) -> int:
        """A tensor of some channels of a buffer."""
        self.tensors.append(Tensor(buffer, offset, channels))
        return len(self.tensors) - 1

    def whole(self, buffer: Buffer) -> int:
        """A tensor that has a buffer of its own."""
        return self.part(self.buffer(buffer), 0, buffer.channels)

    def buffer_of(self, tensor: int) -> Buffer:
        return self.buffers[self.tensors[tensor].buffer]

    def keep(self, array: npt.NDArray[np.generic]) -> int:
        """The offset at which the array will lie among the weights."""
        content, place = array.tobytes(), self.weights_bytes
        self.weights += [content, b"\0" * (-len(content) % ALIGNMENT)]
        self.weights_bytes += len(content) + len(self.weights[-1])
        return place

    def add(self, operation: Operation) -> int:
        """Its output."""
        if len(operation.name.encode()) > LONGEST_NAME:
            raise InvalidInput(f"a layer is named {operation.name!r}; expected {LONGEST_NAME} bytes or fewer")
        self.operations.append(operation)
        return operation.output

    def to_bytes(self) -> bytes:
        tables = ((self.buffers, BUFFER), (self.tensors, TENSOR), (self.operations, OPERATION))
        records = b"".join(_table(records, layout) for records, layout in tables)
        size = HEADER.itemsize + len(records)
        padding = -size % ALIGNMENT
        header = np.array(
            (
                *(MAGIC, VERSION, len(self.buffers), len(self.tensors), len(self.operations)),
                *(*self.shape, 1, 1)[:3],
                *(self.times, self.classes, len(self.shape) == 1, size + padding, self.weights_bytes),
            ),
            HEADER,
        )
        return b"".join([header.tobytes(), records, b"\0" * padding, *self.weights])


def _table(records: Sequence[Buffer | Tensor | Operation], layout: np.dtype[np.void]) -> bytes:
    fields = layout.names or ()
    return np.array([tuple(getattr(record, name) for name in fields) for record in records], layout).tobytes()
