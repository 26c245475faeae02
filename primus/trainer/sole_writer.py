"""One process at a time writes to a run's directory. No torch here.

The lock is a file that names its owner. It appears whole (a hard link to a written file) and is
taken over only from an owner that is provably gone: no process of that number, or one that started
at another time. Needs no flock, which network file systems may lack.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from primus.errors import RunConflictError

LOCK = "writer.json"


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the run for this process.

    Raises:
        RunConflictError: a living process holds it, or one on another host whose state cannot
            be seen from here; the owner is named.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    while not _publish(path, json.dumps(me)):
        _drop_if_abandoned(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def check_free(directory: Path) -> None:
    """Refuse early what `sole_writer` would refuse.

    Raises:
        RunConflictError: as `sole_writer`.
    """
    if (directory / LOCK).exists():
        _drop_if_abandoned(directory / LOCK)


def _publish(path: Path, text: str) -> bool:
    """Make `path` with its whole content, unless it is there already."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(name)
    return True


def _drop_if_abandoned(path: Path) -> None:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return
    _refuse_living_owner(path, text)
    # Another process may have taken the lock over since it was read: move it away, look at what
    # was moved, and put a living owner's lock back.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    moved = aside.read_text()
    if moved != text:
        _publish(path, moved)
    aside.unlink()


def _refuse_living_owner(path: Path, text: str) -> None:
    try:
        owner = json.loads(text)
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(
            f"{path}: names no process. Fix: delete the file if no trainer runs"
        ) from error
    if host != socket.gethostname() or _started(pid) == started:
        raise RunConflictError(
            f"{path.parent}: process {pid} on {host} is writing to this run. "
            "Fix: wait for it or stop it; delete the file "
            f"{path.name} only if that process is certainly gone"
        )


def _started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return None if gone else process.create_time()
    except psutil.NoSuchProcess:
        return None
