"""A bar on a terminal; plain lines, not too many, in a log; and a note for who asks."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

from primus.artifacts import standing

_LINE_SECONDS = 10.0


class Progress:
    """Counts finished problems. Use it as a context manager."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._done, self._printed = total, 0, 0.0
        standing.say(0, total, "problems")
        self._bar = (
            tqdm(total=total, unit="problem", file=self._stream, dynamic_ncols=True)
            if self._stream.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, text: str) -> None:
        """One more is finished; `text` says how it went."""
        self._done += 1
        standing.say(self._done, self._total, "problems")
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if self._done in (1, self._total) or now - self._printed >= _LINE_SECONDS:
            self._printed = now
            print(f"tune {self._done}/{self._total}: {text}", file=self._stream, flush=True)
