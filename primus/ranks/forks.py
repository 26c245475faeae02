"""A node's ranks as forks of their agent, which has imported for all of them what they need.

A fork takes milliseconds where importing takes seconds. It is made while the agent has one thread,
so before the agent has met the others: a rank waits until it is given its environment, and ends
when the agent does before that.
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from primus.errors import TrainingError

# What an agent has handlers for.
_CAUGHT = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a rank is.

    Attributes:
        name: in lists of processes, which go on to show the agent's command line.
        module: what it runs, as in `python -m`. arguments: its command line.
        stdout, stderr: the files that it writes to.
    """

    name: str
    module: str
    arguments: Sequence[str]
    stdout: Path
    stderr: Path


class Forks:
    """The ranks of this node.

    Attributes:
        pids: process numbers by local rank; each is that of a process group, too.
    """

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self._gates: dict[int, int] = {}

    def add(self, number: int, program: Program) -> bool:
        """Fork a local rank.

        Returns:
            True in the rank, once it has its environment: then `run_as_main` follows, with nothing
            of the agent's left on the stack.

        Raises:
            OSError: there is no room for another process, or a file cannot be opened.
            TrainingError: in the rank: the agent has ended.
        """
        for path in (program.stdout, program.stderr):
            path.parent.mkdir(parents=True, exist_ok=True)
        with program.stdout.open("wb") as out, program.stderr.open("wb") as err:
            waits, gate = os.pipe()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            with _without_handlers():
                self.pids[number] = os.fork()
            if self.pids[number]:
                self._gates[number] = gate
                os.close(waits)
                return False
            os.setsid()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
        # Of those forked before: they hear of the agent's end by these.
        for other in (gate, *self._gates.values()):
            os.close(other)
        _become(program, waits)
        return True

    def begin(self, number: int, environment: Mapping[str, str]) -> None:
        """Let a local rank begin, with these variables over the agent's own."""
        # One that has ended already is found by its end.
        with suppress(BrokenPipeError), open(self._gates.pop(number), "wb") as gate:
            gate.write(json.dumps(dict(environment)).encode())

    def end(self, seconds: float) -> None:
        """Kill what is left of them, with all that they have started, and wait for a while."""
        for pid in self.pids.values():
            # One that has only been forked has no group yet.
            for kill in (os.killpg, os.kill):
                with suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
        end = time.monotonic() + seconds
        for pid in self.pids.values():
            with suppress(ChildProcessError):
                while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
                    time.sleep(0.01)


def run_as_main() -> None:
    """Run the rank's module as `python -m` does, in this process."""
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


@contextmanager
def _without_handlers() -> Iterator[None]:
    """Fork in here: no moment in which the rank has handlers of the agent, or misses a signal.

    The kernel says of a rank which signals it catches, and so whether it may be sent a warning.
    """
    agent = os.getpid()
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in _CAUGHT}
    try:
        yield
    finally:
        if os.getpid() != agent:
            # As a new Python has them; the warning must not end a rank without a handler.
            handlers = dict.fromkeys(_CAUGHT, signal.SIG_DFL) | {
                signal.SIGUSR1: signal.SIG_IGN,
                signal.SIGINT: signal.default_int_handler,
            }
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)


def _become(program: Program, waits: int) -> None:
    """Be the rank as a new Python would: by name, command line, environment and random state."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(program.name, encoding="ascii")
    sys.argv = [program.module, *program.arguments]
    sys.orig_argv = [sys.executable, "-u", "-m", *sys.argv]
    # Python's own generator does this by itself.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    with open(waits, "rb") as stream:
        environment = stream.read()
    if not environment:
        raise TrainingError("the agent of this rank has ended")
    os.environ.update(json.loads(environment))
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()
