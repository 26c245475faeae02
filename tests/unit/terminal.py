"""A terminal in place of stdout, and what was written to it."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """While the body runs stdout is a terminal; the function gives what was written since."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(ours, (40, 120))

    def written() -> str:
        found = b""
        with suppress(BlockingIOError):
            while True:
                found += os.read(ours, 1 << 16)
        return found.decode()

    with open(theirs, "w", encoding="utf-8", buffering=1) as stream, redirect_stdout(stream):
        yield written
    os.close(ours)
