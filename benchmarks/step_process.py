"""The contestants of `benchmarks.step`: processes that take a step whenever they are told to."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import step_shape
from benchmarks.step_contestants import CONTESTANTS, environment
from benchmarks.step_shape import Unavailable


class Failed(Exception):
    """A contestant has an error, ended, or did not answer in time; the others go on."""


class Contestant:
    """A process that is being started; `wait` until it is ready.

    Args:
        deadline: `time.monotonic()` at which it is given up.

    Attributes:
        about: what is known of it, once it is ready.
    """

    def __init__(self, name: str, shape: dict[str, Any], deadline: float = math.inf) -> None:
        self._deadline = deadline
        self.about: dict[str, Any] = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, shape), daemon=True)
        with _variables(environment(shape, name)):
            self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            Unavailable: it is not installed here. Failed: it will never be.
        """
        self.about = self._hear()

    def begin(self, steps: int) -> None:
        """Have it take steps; `end` gives what came of them."""
        self._pipe.send(("steps", steps))

    def end(self) -> tuple[float, float]:
        """Seconds of one step, of a CPU thread its processor time; and the loss of the first."""
        answer: tuple[float, float] = self._hear()
        return answer

    def ask(self, what: str) -> Any:
        """Of its process: "forget" the peak of memory so far, the "peak" in MiB, what is "served"
        by tuned kernels of a GPU's library."""
        self._pipe.send((what, 0))
        return self._hear()

    def _hear(self) -> Any:
        limit = self._deadline - time.monotonic()
        try:
            if not self._pipe.poll(None if limit == math.inf else max(1.0, limit)):
                raise Failed("it did not answer in time")
            kind, content = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=10)
            raise Failed(f"its process ended with {self._process.exitcode}") from error
        if kind == "missing":
            raise Unavailable(content)
        if kind == "failed":
            raise Failed(content)
        return content

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(("stop", 0))
        self._process.join(timeout=10)
        self._process.kill()


def _serve(pipe: Connection, name: str, shape: dict[str, Any]) -> None:
    try:
        _answer(pipe, name, shape)
    except Unavailable as error:
        pipe.send(("missing", str(error)))
    except EOFError:
        return
    except Exception as error:
        # Whatever it is: this contestant is out, and the others go on.
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


def _answer(pipe: Connection, name: str, shape: dict[str, Any]) -> None:
    import torch

    # Beside a GPU the host only builds the models, all of them at once.
    torch.set_num_threads(1 if shape["device"] == "cpu" else 4)
    torch.manual_seed(0)
    step, about = CONTESTANTS[name](shape)
    clock = step_shape.clock(shape)
    pipe.send(("ready", about))
    while (told := pipe.recv())[0] != "stop":
        what, steps = told
        if what == "steps":
            # The loop prints its line.
            with contextlib.redirect_stdout(None):
                started = clock()
                losses = [step() for _ in range(steps)]
                seconds = (clock() - started) / steps
            pipe.send(("done", (seconds, losses[0])))
        else:
            pipe.send(("done", _ASKED[what](shape["device"])))


def _forget_peak(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        # proc(5): 5 resets the peak of the resident set.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: str) -> float:
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _served(device: str) -> dict[str, Any] | None:
    if device == "cpu":
        return None
    from primus.gemm.cublaslt.use import counters

    found = counters()
    names = ("hits", "defaults", "misses", "rejections", "passed", "inexpressible", "refused")
    return None if found is None else {name: found[name] for name in names}


_ASKED: dict[str, Callable[[str], Any]] = {
    "forget": _forget_peak,
    "peak": _peak,
    "served": _served,
}


@contextlib.contextmanager
def _variables(variables: dict[str, str]) -> Iterator[None]:
    """Have processes that start inside begin with these."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_a_process(run: Callable[..., Any], *args: Any) -> Any:
    """What `run` returns, of a process that leaves nothing of it in this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *args).result()
