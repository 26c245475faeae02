"""Files hashed and synced while they are written: whole, vouched for, or an error."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from primus.artifacts.manifest import Blake3Record
from primus.trainer import checkpoint_stream
from primus.trainer.checkpoint_stream import SyncedFiles

PIECE = checkpoint_stream._PIECE
SIZES = [1, 0, 3, PIECE + 7, 5, 300_000, 64, 2 * PIECE, 262_144, 1]


def contents(sizes: list[int]) -> list[bytes]:
    return [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]


def test_what_is_written_is_there_and_its_record_is_right(tmp_path: Path) -> None:
    files, path, parts = SyncedFiles(), tmp_path / "file", contents(SIZES)
    with files.create_stream(path, "wb") as stream:
        at = 0
        for part in parts:
            assert stream.tell() == at
            stream.write(part)  # type: ignore[attr-defined]
            at += len(part)
    assert path.read_bytes() == b"".join(parts)
    assert files.records == {"file": Blake3Record.of(path)}


def test_small_parts_are_written_together_though_they_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch flushes after every tensor."""
    write, calls, files = os.write, [], SyncedFiles()

    def counted(*args: Any) -> int:
        calls.append(args)
        return write(*args)

    monkeypatch.setattr(os, "write", counted)
    parts = contents([700] * 500)
    with files.create_stream(tmp_path / "file", "wb") as stream:
        for part in parts:
            stream.write(part)  # type: ignore[attr-defined]
            stream.flush()
    assert len(calls) == 2, "350,000 bytes through a buffer of 262,144"
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert files.records["file"] == Blake3Record.of(tmp_path / "file")


def test_the_memory_is_the_writers_again_when_a_write_returns(tmp_path: Path) -> None:
    files, buffer = SyncedFiles(), bytearray(PIECE)
    with files.create_stream(tmp_path / "file", "wb") as stream:
        for value in range(5):
            buffer[:] = bytes([value]) * PIECE
            stream.write(buffer)  # type: ignore[attr-defined]
    assert files.records["file"] == Blake3Record.of(tmp_path / "file")


def test_a_system_that_takes_less_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def half(file: int, content: Any) -> int:
        return write(file, memoryview(content)[: max(1, len(content) // 2)])

    monkeypatch.setattr(os, "write", half)
    files, parts = SyncedFiles(), contents(SIZES)
    with files.create_stream(tmp_path / "file", "wb") as stream:
        for part in parts:
            stream.write(part)  # type: ignore[attr-defined]
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert files.records["file"] == Blake3Record.of(tmp_path / "file")


def test_the_disk_takes_it_in_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_stream, "_SYNC_EVERY", PIECE)
    fsync, path, synced, sizes = os.fsync, tmp_path / "file", threading.Event(), []

    def note(file: int) -> None:
        sizes.append(path.stat().st_size)
        fsync(file)
        synced.set()

    monkeypatch.setattr(os, "fsync", note)
    with SyncedFiles().create_stream(path, "wb") as stream:
        stream.write(bytes(PIECE))  # type: ignore[attr-defined]
        assert synced.wait(60), "nothing is synced before the end"
        stream.write(bytes(PIECE))  # type: ignore[attr-defined]
    assert sizes[0] == PIECE
    assert sizes[-1] == 2 * PIECE, "what was written last is synced too"


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_an_error_of_the_disk_is_raised_and_vouches_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The first call alone fails: the system tells of an error once."""
    real, calls, opened = getattr(os, call), [], len(os.listdir("/proc/self/fd"))

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        return real(*args)

    files = SyncedFiles()
    monkeypatch.setattr(checkpoint_stream, "_SYNC_EVERY", PIECE)
    monkeypatch.setattr(os, call, fail)

    def save() -> None:
        with files.create_stream(tmp_path / "file", "wb") as stream:
            for _ in range(4):
                stream.write(bytes(PIECE))  # type: ignore[attr-defined]

    with pytest.raises(OSError, match="Input/output error"):
        save()
    assert files.records == {}
    assert len(os.listdir("/proc/self/fd")) == opened


def test_it_is_for_writing_alone(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="only written here"),
        SyncedFiles().create_stream(tmp_path / "file", "rb"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
