"""Files that another node has just written, on a file system that shows them late."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from primus.errors import UnavailableError

# Network file systems keep in mind for up to a minute that a file was not there.
PATIENCE_SECONDS = 90.0


def wait_for_files(paths: Iterable[Path | None], seconds: float | None = None) -> None:
    """Return when all of them are there and hold something.

    Args:
        paths: None is left out. seconds: for all together; None: `PATIENCE_SECONDS`.

    Raises:
        UnavailableError: one does not come.
    """
    end = time.monotonic() + (PATIENCE_SECONDS if seconds is None else seconds)
    for path in paths:
        while path is not None and not is_there(path):
            if time.monotonic() > end:
                raise UnavailableError(
                    f"{path}: cannot be seen on {os.uname().nodename}, though the job's first node "
                    "has it. Fix: start from a directory that all nodes share, by the same path"
                )
            time.sleep(0.2)


def is_there(path: Path) -> bool:
    """Whether this node sees the file, and something in it."""
    try:
        # Opening the directory makes a network file system ask its server again.
        os.close(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
        return path.stat().st_size > 0
    except OSError:
        return False
