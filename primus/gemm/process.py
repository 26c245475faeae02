"""One measuring process as its parent sees it: JSON lines both ways, its last words, its end."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from primus.launch import laid_over, python_path

_LAST_LINES = 3
_LAST_CHARACTERS = 400
_POLL_SECONDS = 0.005


class Process:
    """A measuring process; killed with all of its children.

    Args:
        command: starts it.
        environment: variables on top of this process's own; None: unset.
        seconds: how long its start may take.

    Attributes:
        number: which of the pool's places it fills; a process that replaces it has the same.
        ready: it has loaded its library.
        deadline: `time.monotonic()` at which its present work has lasted too long.
    """

    def __init__(
        self,
        command: Sequence[str],
        number: int,
        environment: Mapping[str, str | None],
        seconds: float,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=laid_over(os.environ, environment, {"PYTHONPATH": python_path()}),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin: IO[bytes] = self._process.stdin
        self.stdout: IO[bytes] = self._process.stdout
        self.stderr: IO[bytes] = self._process.stderr
        os.set_blocking(self.stderr.fileno(), False)
        self._pending = b""
        self._words = b""
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self.number = number
        self.ready = False
        self.deadline = time.monotonic() + seconds

    @property
    def pid(self) -> int:
        """Of the process; also of its session and group."""
        return self._process.pid

    def send(self, request: Mapping[str, Any], seconds: float) -> None:
        """Hand over a request that may take so many seconds."""
        self.deadline = time.monotonic() + seconds
        self._last.clear()
        with suppress(BrokenPipeError):  # it may have just died; reading from it says how
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """The answers that have come; None when the process has ended."""
        chunk = os.read(self.stdout.fileno(), 1 << 16)
        if not chunk:
            return None
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def listen(self) -> bool:
        """Pass on what it says on stderr, and remember the end; False once that is closed."""
        while True:
            try:
                chunk = os.read(self.stderr.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            *lines, self._words = (self._words + chunk).split(b"\n")
            self._words = self._words[-_LAST_CHARACTERS:]
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                print(text, file=sys.stderr, flush=True)
                if text:
                    self._last.append(text)

    def last_words(self) -> str:
        """The last lines of stderr since the last request, as one; empty without any."""
        self.listen()
        rest = self._words.decode(errors="replace").strip()
        lines = [*self._last, rest] if rest else [*self._last]
        text = " | ".join(" ".join(line.split()) for line in lines[-_LAST_LINES:])
        return text if len(text) <= _LAST_CHARACTERS else "…" + text[-_LAST_CHARACTERS:]

    def hang_up(self) -> None:
        """Close its stdin, at which it ends by itself, on whichever node it is."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def end(self, grace: float = 0.0) -> str:
        """End it if it has not ended by itself within `grace` seconds; say how it ended."""
        until = time.monotonic() + grace
        # It is not reaped yet, so that its number, which is its group's, cannot be given anew.
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        return f"signal {-status}" if status < 0 else f"status {status}"

    def close(self) -> None:
        """Close the pipes to a process that has ended."""
        for stream in (self._stdin, self.stdout, self.stderr):
            with suppress(BrokenPipeError):  # what is still buffered has no reader
                stream.close()

    def _has_ended(self) -> bool:
        how = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._process.pid, how) is not None


def register(selector: selectors.BaseSelector, process: Process) -> None:
    """Watch both outputs of a process."""
    for stream in (process.stdout, process.stderr):
        selector.register(stream, selectors.EVENT_READ, (process, stream is process.stdout))


def unregister(selector: selectors.BaseSelector, process: Process) -> None:
    """Stop watching a process, which may have closed an output already."""
    for stream in (process.stdout, process.stderr):
        with suppress(KeyError):
            selector.unregister(stream)
