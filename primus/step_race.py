"""Processes that train the same steps in turns: all alive, one at work."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

from primus.errors import PrimusError
from primus.gemm.measure import turns
from primus.launch import laid_over, python_path

# The first step compiles; with the next ones memory settles.
WARM_UP = 4
_LAST_CHARACTERS = 300


class RaceError(PrimusError):
    """The steps could not be timed."""


@dataclass(frozen=True)
class Entry:
    """A contestant before it starts.

    Attributes:
        command: the argument list of its process, which speaks as `primus.step_turns` does.
        environment: of its process, on top of this one's; None: unset.
    """

    command: Sequence[str]
    environment: Mapping[str, str | None]


@dataclass
class Times:
    """What a contestant has answered.

    Attributes:
        samples: microseconds per step, by run.
        served: products that tuned kernels computed in its last step.
    """

    samples: list[list[float]] = field(default_factory=list)
    served: int = 0


def race(
    entries: Mapping[str, Entry], *, runs: int, rounds: int, deadline: float
) -> dict[str, Times]:
    """Time `runs` runs of `rounds` rounds of one step of each.

    Who comes first changes from round to round.

    Args:
        deadline: `time.monotonic()` at which it is given up.

    Raises:
        RaceError: a process ended or did not answer in time; says what it said last.
    """
    times = {name: Times() for name in entries}
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_Process(name, entry, deadline))
            for name, entry in entries.items()
        }
        for process in started.values():
            process.read()
        for process in started.values():
            for _ in range(WARM_UP):
                process.step()
        for _ in range(runs):
            for found in times.values():
                found.samples.append([])
            for order in turns(list(entries), rounds):
                for name in order:
                    answer = started[name].step()
                    times[name].samples[-1].append(float(answer["us"]))
                    times[name].served = int(answer["served"])
    return times


class _Process:
    """One contestant; leaving the context ends it and all of its children."""

    def __init__(self, name: str, entry: Entry, deadline: float) -> None:
        self._name, self._entry, self._deadline = name, entry, deadline
        self._pending = b""

    def __enter__(self) -> Self:
        self._words = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._entry.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=laid_over(os.environ, self._entry.environment, {"PYTHONPATH": python_path()}),
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            assert stream is not None
            with suppress(BrokenPipeError):  # what is still buffered has no reader
                stream.close()

    def step(self) -> dict[str, Any]:
        """Its turn: one step, and what it answers."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it may have just died; reading says how
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """Its next answer."""
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            if not self._selector.select(max(0.0, self._deadline - time.monotonic())):
                raise RaceError("the budget ended before all steps were timed")
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise RaceError(self._last_words(self._process.wait()))
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self, status: int) -> str:
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f"the steps of {self._name!r} ended with {how}: {last[:_LAST_CHARACTERS]}"


def step_command(shapes: Path, threads: int, tuned: Path | None) -> list[str]:
    """The argument list of `primus.step_turns`."""
    return [
        *(sys.executable, "-m", "primus.step_turns"),
        *("--shapes", str(shapes), "--threads", str(threads)),
        *(("--tuned", str(tuned)) if tuned else ()),
    ]
