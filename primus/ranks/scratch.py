"""A directory on a node's own disk for as long as an agent lives; one that is killed removes none.

The next agent on the node removes what such a one has left. That its owner lives is said by a lock
on the directory, which ends with the process that holds it, in whatever container that is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# No name that an older version of this program has used: its directories carry no lock.
_PREFIX = "primus-ranks-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A new directory that is removed at the end; so are those of agents that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_left(path)
    path, handle = _make()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _make() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Until it is locked, another agent may take it for left.
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if path.exists():
                return path, handle
            os.close(handle)


def _remove_if_left(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        # Another user's, or gone by now.
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)
