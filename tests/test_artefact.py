"""Folders are absent, old or complete, whatever fails, whenever the process dies; what is read is what was hashed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyflow import artefact
from pyflow.artefact import (
    json_bytes,
    map_verified,
    publish,
    read_json,
    read_verified,
    sha256,
    sha256_of_pieces,
    write_file,
)
from pyflow.errors import InvalidArtefact, InvalidInput

FILES = {"weights": b"0123456789", "record.json": b"{}"}


def make(folder: Path, suffix: bytes = b"") -> None:
    with publish(folder) as fresh:
        for name, content in FILES.items():
            (fresh / name).write_bytes(content + suffix)


def state_of(folder: Path) -> dict[str, bytes] | None:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def named(suffix: bytes) -> dict[str, bytes]:
    return {name: content + suffix for name, content in FILES.items()}


class Faulty:
    """Counts calls; call number `at` raises instead."""

    def __init__(self, function, at: int, code: int) -> None:
        self.function, self.at, self.code, self.calls = function, at, code, 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.calls == self.at:
            raise OSError(self.code, os.strerror(self.code))
        return self.function(*arguments, **named)


# ---- publish
def test_publish_makes_replaces_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "deep" / "folder"
    make(folder, b"1")
    assert state_of(folder) == named(b"1")
    make(folder, b"2")
    assert state_of(folder) == named(b"2")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("standing", [False, True], ids=["first", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("swap", [True, False], ids=["swap", "no swap"])
@pytest.mark.parametrize("call", ["fsync", "rename", "write_bytes"])
def test_a_failure_at_any_call_leaves_old_or_complete(tmp_path, monkeypatch, call, swap, code, standing):
    """Every call in turn fails, until a run has fewer calls than that."""
    owner = Path if call == "write_bytes" else os
    real = getattr(owner, call)
    if not swap:
        monkeypatch.setattr(artefact.ctypes, "CDLL", lambda *_, **__: _NoSwap)
    for at in range(1, 50):
        folder = tmp_path / str(at) / "folder"
        folder.parent.mkdir()
        if standing:
            make(folder, b"old")
        fault = Faulty(real, at, code)
        # A plain function, unlike an object, is bound to its instance: write_bytes is a method.
        monkeypatch.setattr(owner, call, lambda *a, fault=fault, **k: fault(*a, **k))
        try:
            make(folder, b"new")
            failed = False
        except OSError as error:
            failed = error.errno == code
        finally:
            monkeypatch.setattr(owner, call, real)
        came = state_of(folder)
        allowed = [named(b"new")] + ([named(b"old") if standing else None] if failed else [])
        assert came in allowed, f"{call} number {at} failed: {came}"
        left = [path.name for path in folder.parent.iterdir() if path != folder]
        assert not left, f"{call} number {at} failed and left {left}"
        if not failed:
            # Nothing was skipped over in silence: the loop reached past the last call.
            assert fault.calls < at
            assert at > 1 or (call, standing and swap) == ("rename", True)  # a swap renames nothing by os.rename
            break
    else:
        pytest.fail("no run without a failure in 50")


class _NoSwap:
    """A C library on a file system that knows no RENAME_EXCHANGE."""

    @staticmethod
    def renameat2(*_):
        return -1


def test_data_is_durable_before_its_name_is(tmp_path, monkeypatch):
    """fsync of every file, then of the new folder, then the rename, then fsync of the parent."""
    log: list[str] = []
    real_fsync, real_rename, real_exchange = os.fsync, os.rename, artefact._exchange
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append("RENAME"), real_rename(a, b)))
    monkeypatch.setattr(artefact, "_exchange", lambda a, b: (log.append("RENAME"), real_exchange(a, b)))
    for _ in range(2):  # a first time, and over a folder that stands
        log.clear()
        make(tmp_path / "folder")
        *data, fresh, rename, parent = log
        assert {Path(path).name for path in data} == set(FILES)
        assert {str(Path(path).parent) for path in data} == {fresh}
        assert (rename, parent) == ("RENAME", str(tmp_path))


def test_an_error_inside_leaves_the_old_folder(tmp_path):
    make(tmp_path / "folder", b"old")

    def interrupted():
        with publish(tmp_path / "folder") as fresh:
            (fresh / "weights").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert state_of(tmp_path / "folder") == named(b"old")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "record.json").write_text("mine")
    with pytest.raises(InvalidInput, match="home holds thesis, which would be deleted"):
        make(home)
    assert (home / "record.json").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInput, match="is a file"):
        make(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "home"]


def test_only_plain_files_are_replaced_by_name(tmp_path):
    """A list of names, which may come from a file that somebody else wrote, costs nobody a folder or a link."""
    folder = tmp_path / "folder"
    for name in ("photos", "weights"):  # of which only the second is the name of a new file
        (folder / name).mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    (folder / "old").write_bytes(b"old")
    with (
        pytest.raises(InvalidInput, match="holds link, photos, weights, which would be deleted"),
        publish(folder, replaces=["photos", "weights", "link", "old"]) as fresh,
    ):
        (fresh / "weights").write_bytes(b"new")
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("stranger", [False, True])
def test_a_folder_that_appears_meanwhile_is_replaced_too(tmp_path, monkeypatch, stranger):
    """Two first publications at once: the second finds the folder of the first at its rename."""
    folder, real = tmp_path / "folder", os.rename

    def late(source, target):
        monkeypatch.setattr(os, "rename", real)
        make(folder, b"1")
        if stranger:
            (folder / "thesis").write_bytes(b"mine")
        real(source, target)

    monkeypatch.setattr(os, "rename", late)
    if stranger:
        with pytest.raises(InvalidInput, match="holds thesis, which would be deleted"):
            make(folder, b"2")
    else:
        make(folder, b"2")
        assert state_of(folder) == named(b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_empty_folder_is_filled_and_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert state_of(tmp_path / "real") == named(b"x")


WRITER = """
import itertools, sys
from pathlib import Path
from pyflow.artefact import json_bytes, publish, sha256
for turn in itertools.count():
    with publish(Path(sys.argv[1])) as fresh:
        content = str(turn).encode() * 50_000
        (fresh / "weights").write_bytes(content)
        (fresh / "record.json").write_bytes(json_bytes({"sha256": sha256(content)}))
    print(turn, flush=True)
"""


def test_killed_at_any_moment_the_folder_is_complete(tmp_path, rng):
    folder, seen = tmp_path / "folder", 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()  # one is published
            time.sleep(rng.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
        content = read_verified(folder, "weights", read_json(folder / "record.json")["sha256"])
        seen += len(content) > 0
    assert seen == 6


# ---- write_file
@pytest.mark.parametrize("call", ["fsync", "replace", "write_bytes"])
def test_write_file_keeps_the_old_file_when_anything_fails(tmp_path, monkeypatch, call):
    path, owner = tmp_path / "file", Path if call == "write_bytes" else os
    write_file(path, b"old")
    real = getattr(owner, call)
    for at in range(1, 20):
        fault = Faulty(real, at, errno.ENOSPC)
        monkeypatch.setattr(owner, call, lambda *a, fault=fault, **k: fault(*a, **k))
        try:
            write_file(path, b"new")
            break
        except OSError:
            assert path.read_bytes() in (b"old", b"new")
            assert [p.name for p in tmp_path.iterdir()] == ["file"], f"{call} number {at}"
        finally:
            monkeypatch.setattr(owner, call, real)
    assert path.read_bytes() == b"new"
    assert at > 1


# ---- reading
@pytest.mark.parametrize("piece", [None, 64])
def test_any_flipped_bit_and_any_truncation_is_refused(tmp_path, rng, monkeypatch, piece):
    content = rng.bytes(200)
    read, recorded = read_verified, sha256(content)
    if piece:
        monkeypatch.setattr(artefact, "_PIECE", piece)
        read, recorded = map_verified, sha256_of_pieces(content)
        assert recorded == tuple(sha256(content[at : at + piece]) for at in range(0, 200, piece))
    for trial in range(50):
        position = int(rng.integers(1, 200))
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        bad = bytes(damaged) if trial % 2 else content[:position]
        (tmp_path / "weights").write_bytes(bad)
        with pytest.raises(InvalidArtefact, match="damaged or was swapped"):
            read(tmp_path, "weights", recorded)
    (tmp_path / "weights").write_bytes(content)
    assert bytes(read(tmp_path, "weights", recorded)) == content


@pytest.mark.parametrize("expected", [None, 5, ["a"], {}, "", b"abc", True], ids=repr)
def test_a_hash_of_the_wrong_type_is_refused(tmp_path, expected):
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(InvalidArtefact):
        read_verified(tmp_path, "weights", expected)


@pytest.mark.parametrize(
    "name", ["../secret", "{abs}", "sub/../../secret", "", ".", "..", "sub/inner", "a/", "\0", "x" * 300]
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"s")
    inside = tmp_path / "folder" / "sub"
    inside.mkdir(parents=True)
    (inside / "inner").write_bytes(b"s")
    with pytest.raises(InvalidArtefact):
        read_verified(tmp_path / "folder", name.format(abs=tmp_path / "secret"), sha256(b"s"))


def test_links_pipes_folders_and_missing_files_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"s")
    folder = tmp_path / "folder"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")  # opened as a file it would wait for ever
    for name in ("link", "pipe", "folder", "missing"):
        with pytest.raises(InvalidArtefact, match=f"{name} can't be read"):
            read_verified(folder, name, sha256(b"s"))


def test_read_json_names_what_is_wrong(tmp_path):
    with pytest.raises(InvalidArtefact, match="is missing"):
        read_json(tmp_path / "none.json")
    for damaged in (b"", b"{", b"\xff\xfe", b'{"a": 1', b"[" * 100_000, b"NaN", b'{"a": -Infinity}'):
        (tmp_path / "bad.json").write_bytes(damaged)
        with pytest.raises(InvalidArtefact, match=r"bad\.json is not valid JSON"):
            read_json(tmp_path / "bad.json")
    with pytest.raises(InvalidArtefact):
        read_json(tmp_path)


def test_json_holds_no_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        json_bytes({"worst": float("nan")})
