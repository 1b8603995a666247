"""The program headers of a 64-bit shared library: what the system's loader maps without a look at the file's size."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pyflow.errors import InvalidArtefact

LOADED, STACK = 1, 0x6474E551  # PT_LOAD, PT_GNU_STACK
EXECUTABLE = 1  # PF_X


class Segment(NamedTuple):
    at: int  # where its header stands
    kind: int
    flags: int
    end: int  # of its bytes in the file


def segments(library: bytes) -> Iterator[Segment]:
    if library[:6] != b"\x7fELF\x02\x01":
        raise InvalidArtefact(f"the library begins with {library[:6]!r}; expected 64-bit ELF: export it again")
    try:
        (headers,) = struct.unpack_from("<Q", library, 32)
        size, count = struct.unpack_from("<HH", library, 54)
        for at in range(headers, headers + size * count, size):
            kind, flags, offset = struct.unpack_from("<IIQ", library, at)
            (length,) = struct.unpack_from("<Q", library, at + 32)
            yield Segment(at, kind, flags, offset + length)
    except (struct.error, ValueError) as error:
        raise InvalidArtefact(f"the library's headers are damaged ({error}); export it again") from error


def refuse_torn(library: bytes) -> None:
    """The loader would map what is missing, and the process would die of a bus error."""
    end = max((segment.end for segment in segments(library) if segment.kind == LOADED), default=0)
    if not 0 < end <= len(library):
        raise InvalidArtefact(f"the library has {len(library)} bytes, its headers tell {end}; export it again")


def with_plain_stack(library: bytes) -> bytes:
    """The library without its wish for an executable stack."""
    patched = bytearray(library)
    for segment in segments(library):
        if segment.kind == STACK:
            struct.pack_into("<I", patched, segment.at + 4, segment.flags & ~EXECUTABLE)
    return bytes(patched)
