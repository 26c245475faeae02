"""A bar under the lines of a training, where they go to a terminal; a log has the lines alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from tqdm import tqdm

# A line of primus.trainer.metrics.live_line.
_LINE = re.compile(r"iteration +(\d+)/(\d+) \|.*\| (ETA [^|]+)$")
_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"


class Screen:
    """A stream to a terminal; the lines that are written to it stand above the bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self._begun = ""

    def write(self, text: str) -> int:
        """As a stream's; a line is shown when it is whole."""
        whole, end, rest = text.rpartition("\n")
        if not end:
            self._begun += text
            return len(text)
        lines, self._begun = self._begun + whole + end, rest
        tqdm.write(lines, file=self._stream, end="")
        for line in lines.splitlines():
            found = _LINE.fullmatch(line)
            if found is not None:
                self._show(int(found[1]), int(found[2]), found[3])
        return len(text)

    def _show(self, iteration: int, target: int, left: str) -> None:
        if self._bar is None:
            self._bar = tqdm(file=self._stream, dynamic_ncols=True, bar_format=_FORMAT)
        self._bar.total, self._bar.n = target, iteration
        self._bar.set_postfix_str(left)

    def end(self) -> None:
        """The bar stays as it is; what has begun as a line is shown."""
        if self._bar is not None:
            self._bar.close()
        self._stream.write(self._begun)
        self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def screens() -> Iterator[tuple[TextIO, TextIO]]:
    """stdout and stderr, with a bar under both where stdout is a terminal."""
    if not sys.stdout.isatty():
        yield sys.stdout, sys.stderr
        return
    out = Screen(sys.stdout)
    made = [out, Screen(sys.stderr)] if sys.stderr.isatty() else [out]
    streams: list[Any] = [*made, sys.stderr]
    try:
        yield streams[0], streams[1]
    finally:
        for screen in made:
            screen.end()


@contextmanager
def on_screen() -> Iterator[None]:
    """As `screens`, for what this process itself prints while the body runs."""
    with screens() as (out, errors), redirect_stdout(out), redirect_stderr(errors):
        yield
