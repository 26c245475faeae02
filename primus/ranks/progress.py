"""How far a rank is: it says so in a small file of its node, which its agent reads.

A file and not a message: what a rank wrote last can be read when it is stopped, or stuck in a call
that never comes back. Writing it takes a microsecond.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

# Set for ranks, or for their agent: for how many seconds a rank may be silent, and for how many
# until its first iteration is finished.
HANG, START = "PRIMUS_HANG_SECONDS", "PRIMUS_START_SECONDS"
# Names, to a rank, its two files: of its progress, and of the stacks that it is asked for.
PROGRESS, STACKS = "PRIMUS_PROGRESS", "PRIMUS_STACKS"
ASK_FOR_STACKS = signal.SIGUSR2
_SIZE = 80


@dataclass(frozen=True)
class Progress:
    """What a rank said last.

    Attributes:
        step: how often it has said something; grows.
        iteration: the last that it finished, of the whole run.
        iterations: how many it has finished in this attempt.
        phase: in one word what it went on to do.
    """

    step: int
    iteration: int
    iterations: int
    phase: str


class Reporter:
    """The rank's side. Without an agent a rank watches itself, by a thread that needs no Python."""

    def __init__(self) -> None:
        path = os.environ.get(PROGRESS)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644) if path else None
        self._step = 0
        self._start = -1
        self._armed = -math.inf
        self._hang = float(os.environ.get(HANG, "inf"))
        self._patience = max(self._hang, float(os.environ.get(START, "0")))

    def say(self, phase: str, iteration: int = -1) -> None:
        """The rank goes on to do `phase`, after `iteration`; -1: it has not come so far."""
        if self._start < 0:
            self._start = iteration
        done = iteration - self._start
        if self._file is None:
            self._watch_itself(done)
            return
        self._step += 1
        text = f"{self._step} {iteration} {done} {phase}\n"
        os.pwrite(self._file, text.encode().ljust(_SIZE), 0)

    def _watch_itself(self, done: int) -> None:
        """Have this process end, its stacks written, unless it says something in time."""
        patience = self._hang if done > 0 else self._patience
        now = time.monotonic()
        # Starting the timer anew starts a thread.
        if patience == math.inf or (
            patience == self._patience and now - self._armed < patience / 20
        ):
            return
        self._patience, self._armed = patience, now
        faulthandler.dump_traceback_later(patience, exit=True, file=_stacks_file())

    def close(self) -> None:
        """The rank has nothing more to say."""
        faulthandler.cancel_dump_traceback_later()


def give_stacks_when_asked() -> None:
    """Have the stacks of all threads written on `ASK_FOR_STACKS`, whatever they are in."""
    faulthandler.enable()
    if PROGRESS in os.environ:
        faulthandler.register(ASK_FOR_STACKS, file=_stacks_file(), all_threads=True)


@cache
def _stacks_file() -> IO[str]:
    # Kept open for the life of the process: a handler may not open it.
    return open(os.environ[STACKS], "w", encoding="utf-8") if STACKS in os.environ else sys.stderr


def read_progress(path: Path) -> Progress | None:
    """What a rank said last; None before its first word."""
    try:
        step, iteration, done, phase = path.read_text(encoding="utf-8").split()
        return Progress(int(step), int(iteration), int(done), phase)
    except (OSError, ValueError):
        return None
