"""How far a long stage is: a bar on a terminal, otherwise a plain line now and then; and a note."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from primus.artifacts import standing

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Progress over a known number of bytes; use as a context manager."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what, self._total = what, total_bytes
        self._done = self._tokens = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_bytes or None, desc=what, unit="B", unit_scale=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done_bytes: int, tokens: int) -> None:
        """Say that `done_bytes` of the input are read and `tokens` made, both in all."""
        self._tokens = tokens
        standing.say(done_bytes, self._total or None, "bytes")
        if self._bar is not None:
            self._bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
            self._bar.update(done_bytes - self._done)
        self._done = done_bytes
        now = time.monotonic()
        if self._bar is None and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.line(f"{self._share()}{tokens:,} tokens")

    def line(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(f"{self._what}: {text}", file=sys.stderr)
        else:
            print(f"{self._what}: {text}", file=sys.stderr, flush=True)

    def summary(self, text: str) -> None:
        """Print the last line, with the time since the start and the rate."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        self.line(f"{text} in {seconds:.1f} s ({self._tokens / seconds:,.0f} tokens/s)")

    def _share(self) -> str:
        return f"{100 * self._done / self._total:.0f} %, " if self._total else ""
