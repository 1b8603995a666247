"""Folders that are absent, old or complete: how pyflow publishes what it makes, and checks what it reads."""

import ctypes
import errno
import glob
import hashlib
import json
import mmap
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from .errors import InvalidArtefact, InvalidInput

Content = bytes | mmap.mmap
Read = TypeVar("Read", bytes, mmap.mmap)

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_JSON_LIMIT = 2**24
_PIECE = 2**24


@contextmanager
def publish(folder: Path, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Give a new empty folder to write in; on success it takes the place of `folder` in one durable rename.

    An error inside leaves `folder` as it was. Whatever stood there before is deleted only after the swap, and only if
    the new folder has a file for each of its own, in the folders inside too, but for plain files in `replaces`: a home
    directory named by mistake stays.
    """
    folder = Path(os.path.realpath(folder))
    refuse_blocked(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    fresh.mkdir()
    try:
        yield fresh
        for path in sorted(fresh.rglob("*")):
            _flush(path)
        _flush(fresh)
        _place(fresh, folder, replaces)
        _flush(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def refuse_blocked(folder: Path) -> None:
    """Refuse a folder that cannot be made: it is a file, or lies in one."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            inside = "" if place == folder else f" to make {folder.name} in"
            raise InvalidInput(f"{place} is a file; expected a folder{inside}, or a name that is free")


def sweep(folder: Path) -> None:
    """Remove what processes that were killed had begun to publish as `folder`."""
    folder = Path(os.path.realpath(folder))
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.????????.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def sweep_files(folder: Path, named: str = "*") -> None:
    """Remove what processes that were killed had begun to write to files of such names in `folder`."""
    for left in folder.glob(f".{named}.????????.tmp"):
        if left.is_file():
            left.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write one file so that after a crash it is the old one or the new one, and the new one once this returns."""
    refuse_blocked(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        fresh.write_bytes(content)
        _flush(fresh)
        os.replace(fresh, path)
        _flush(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def json_bytes(data: Any) -> bytes:
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path, constant: Callable[[str], object] | None = None) -> Any:
    """What a file holds. NaN and infinities are no JSON: `constant` makes something of them, or they are refused."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"{path.stat().st_size} bytes; a record has {_JSON_LIMIT} at most")
        return json.loads(path.read_bytes(), parse_constant=constant or _refuse_constant)
    except FileNotFoundError:
        raise InvalidArtefact(f"{path} is missing; the folder is incomplete or not one that pyflow wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArtefact(f"{path} is not valid JSON ({error}); the file is damaged, make it again") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")


def sha256(content: Content | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_of_pieces(content: Content) -> tuple[str, ...]:
    """A hash for each 16 MiB, made by several threads: one alone takes 65 ms for the 153 MB of a large network."""
    with memoryview(content) as whole, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = [whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE)]
        try:
            return tuple(pool.map(sha256, parts))
        finally:
            for part in parts:
                part.release()


def read_verified(folder: Path, name: str, expected: str, size: int | None = None) -> bytes:
    """The bytes of a file inside `folder`, refused unless they hash to `expected`. What is checked is what is used.

    A file of another `size` than its record says is refused before it is read.
    """
    return _verified(folder, name, expected, size, lambda file: file.read())


def map_verified(folder: Path, name: str, expected: str | tuple[str, ...], size: int | None = None) -> mmap.mmap:
    """The same as the file's own pages, which processes share: it must be replaced, as `publish` does, never edited.

    `expected` is its hash, or those of its pieces.
    """
    return _verified(folder, name, expected, size, lambda file: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _verified(
    folder: Path, name: str, expected: str | tuple[str, ...], size: int | None, read: Callable[[BinaryIO], Read]
) -> Read:
    path = folder / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise InvalidArtefact(f"{folder}: names the file {name!r}; expected a plain name inside the folder")
    try:
        content = _read_regular(path, size, read)
    except (OSError, ValueError) as error:
        raise InvalidArtefact(f"{path} can't be read ({error}); the folder is incomplete, make it again") from error
    recorded = expected if isinstance(expected, tuple) else (expected,)
    found = sha256_of_pieces(content) if recorded is expected else (sha256(content),)
    if found != recorded:
        came, said = next((one, two) for one, two in zip_longest(found, recorded, fillvalue="none") if one != two)
        raise InvalidArtefact(
            f"{path} has sha256 {came[:12]}…, its record says {str(said)[:12]}…; "
            "the file is damaged or was swapped, make it again"
        )
    return content


def _read_regular(path: Path, size: int | None, read: Callable[[BinaryIO], Read]) -> Read:
    """What `read` makes of a plain file: a link is not followed, a pipe is not waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if size is not None and status.st_size != size:
            raise OSError(f"it has {status.st_size} bytes, its record says {size}")
        return read(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(fresh: Path, folder: Path, replaces: Collection[str]) -> None:
    if not folder.exists():
        try:
            os.rename(fresh, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    _refuse_strangers(fresh, folder, replaces)
    _exchange(fresh, folder)


def _refuse_strangers(fresh: Path, folder: Path, replaces: Collection[str]) -> None:
    strangers = sorted(_strangers(fresh, folder, replaces))
    if strangers:
        raise InvalidInput(
            f"{folder} holds {', '.join(strangers[:3])}{', …' * (len(strangers) > 3)}, which would be deleted; "
            "name another folder, or remove this one"
        )


def _strangers(fresh: Path, folder: Path, replaces: Collection[str]) -> Iterator[str]:
    """What `folder` has and `fresh` has not, as paths inside; a folder counts by what is in it."""
    for path in folder.iterdir():
        twin = fresh / path.name
        if path.is_dir() and not path.is_symlink():
            inside = _strangers(twin, path, ()) if twin.is_dir() else [""]
            yield from (f"{path.name}/{name}".rstrip("/") for name in inside)
        elif not twin.exists() and not (path.name in replaces and path.is_file() and not path.is_symlink()):
            yield path.name


def _exchange(fresh: Path, folder: Path) -> None:
    """Swap two folders in one step; Python has no name for this system call."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(folder), _RENAME_EXCHANGE) == 0:
        return
    # Some file systems (NFS, some overlays) can't swap: for a moment the name is then absent.
    old = fresh.with_suffix(".old")
    os.rename(folder, old)
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
