"""Whether a process of this host is still the one that was noted: numbers come again."""

from __future__ import annotations

import psutil


def started(pid: int) -> float | None:
    """When a process that runs was started, in seconds since the epoch; None where none runs.

    A zombie has ended.
    """
    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return None if gone else process.create_time()
    except psutil.NoSuchProcess:
        return None
