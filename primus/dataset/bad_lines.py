"""Counting the lines that cannot be read, and stopping at too many."""

from __future__ import annotations

import sys

from primus.dataset.text import Kind
from primus.errors import DataError

_SHOWN = 20


class BadLines:
    """Bad lines of a whole data set; every one is named on stderr.

    Attributes:
        lines: "file:line: why" of each one so far.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lines: list[str] = []

    def add(self, name: str, kind: Kind, line: int, why: str) -> None:
        """Count and name a bad line.

        Raises:
            DataError: more than `limit` so far, and names the first of them. At once for a .txt
                file, of which a whole document and not a line would be lost.
        """
        if kind == "txt":
            raise DataError(f"{name}:{line}: {why}. Fix: convert the file to UTF-8")
        print(f"warning: skipped {name}:{line}: {why}", file=sys.stderr, flush=True)
        self.count([f"{name}:{line}: {why}"])

    def count(self, lines: list[str]) -> None:
        """Count lines that were named before, by an earlier start of the stage."""
        self.lines += lines
        if len(self.lines) > self.limit:
            head = (
                f"{len(self.lines)} unreadable lines, max_bad_lines = {self.limit} may be skipped. "
                "Fix: mend the lines or raise max_bad_lines"
            )
            raise DataError("\n".join([head, *self.lines[:_SHOWN]]))
