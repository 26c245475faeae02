"""Whether a directory can be written from this node, how fast, and whether all nodes share it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.preflight import Disk

_TOKEN, _PATIENCE_SECONDS = "token", 20.0
_BLOCK = 1 << 20


def measure(directory: Path, mib: int) -> Disk:
    """Write a file of random bytes, fsync it, drop it from the page cache and read it back.

    Args:
        directory: must be there.
        mib: size of the file.
    """
    free = None
    try:
        free = shutil.disk_usage(directory).free
        with tempfile.TemporaryFile(dir=directory) as stream:
            written, read = _there_and_back(stream.fileno(), mib)
    except OSError as error:
        gib = None if free is None else free / 2**30
        return Disk(free_gib=gib, error=f"{directory}: {error.strerror}")
    if not read:
        return Disk(free_gib=free / 2**30, error=f"{directory}: other bytes than were written")
    return Disk(
        free_gib=free / 2**30,
        write_mb_s=mib * _BLOCK / written / 1e6,
        read_mb_s=mib * _BLOCK / read / 1e6,
    )


def _there_and_back(descriptor: int, mib: int) -> tuple[float, float]:
    """Seconds of writing and of reading; the latter 0 where other bytes come back."""
    block = os.urandom(_BLOCK)
    start = time.perf_counter()
    for _ in range(mib):
        view = memoryview(block)
        while view:
            view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)
    written = time.perf_counter() - start
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    start = time.perf_counter()
    for _ in range(mib):
        found = b""
        while len(found) < _BLOCK and (more := os.read(descriptor, _BLOCK - len(found))):
            found += more
        if found != block:
            return written, 0.0
    return written, time.perf_counter() - start


def leave_token(directory: Path, token: str) -> None:
    """Write what every node must find in the directory."""
    (directory / _TOKEN).write_text(token, encoding="ascii")


def sees_token(directory: Path, token: str) -> bool:
    """Whether this node reads the token, within 20 s: network file systems show files late."""
    return _reads(directory / _TOKEN, token, time.monotonic() + _PATIENCE_SECONDS)


def leave_mark(directory: Path, node: int, token: str) -> None:
    """Write what the node that started the job must find in the directory."""
    _mark(directory, node).write_text(token, encoding="ascii")


def unseen_marks(
    directory: Path, nodes: Sequence[int], token: str, seconds: float = _PATIENCE_SECONDS
) -> list[int]:
    """Nodes whose mark is not read here within `seconds`, all of them together."""
    end = time.monotonic() + seconds
    return [node for node in nodes if not _reads(_mark(directory, node), token, end)]


def _mark(directory: Path, node: int) -> Path:
    return directory / f"mark{node:03d}"


def _reads(path: Path, token: str, end: float) -> bool:
    while True:
        try:
            if path.read_text(encoding="ascii") == token:
                return True
        except (OSError, UnicodeDecodeError):
            pass
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
