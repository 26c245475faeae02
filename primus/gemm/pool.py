"""Worker processes, each with one request at a time and a time limit per request."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from primus.errors import PrimusError
from primus.gemm.backends.base import BackendSpec

# Loading torch from a slow network file system takes its time; this is no measurement.
START_SECONDS = 300.0

Request = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        content: the worker's answer; empty when there is none.
        failure: why there is none.
        timed_out: the failure is the time limit.
    """

    content: dict[str, Any]
    failure: str | None = None
    timed_out: bool = False


class _Worker:
    """One process; killed with all of its children."""

    def __init__(self, spec: BackendSpec, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "primus.gemm.worker", json.dumps(spec.to_json())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": _python_path()},
            start_new_session=True,
        )
        self._pending = b""
        self.ready = False
        self.deadline = time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, request: Mapping[str, Any], seconds: float) -> None:
        assert self._process.stdin is not None
        self.deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError):  # it may have just died; reading from it says how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """The lines that have come; None when the process has ended."""
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            return None
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self, grace: float = 0.0) -> str:
        """End it if it has not ended by itself within `grace` seconds; say how it ended."""
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):  # it may end by itself in the meantime
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # what is still buffered has no reader
                stream.close()
        return f"signal {-status}" if status < 0 else f"status {status}"


def _python_path() -> str:
    """So that the worker finds this package from whatever directory it starts in."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


class Pool:
    """Up to `workers` processes of one backend, started when the first request comes.

    Use it as a context manager: leaving it ends every process.
    """

    def __init__(
        self, spec: BackendSpec, workers: int, environment: Mapping[str, str] | None = None
    ) -> None:
        threads = {"OMP_NUM_THREADS": str(spec.threads), "MKL_NUM_THREADS": str(spec.threads)}
        self._spec, self._size = spec, workers
        self._environment = {**(environment or {}), **(threads if spec.threads else {})}
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Request] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in [*self._idle, *self._busy]:
            self._end(worker)
        self._idle, self._busy = [], {}
        self._selector.close()

    def run(
        self,
        requests: Iterable[Request],
        *,
        timeout: float,
        deadline: float = float("inf"),
    ) -> Iterator[tuple[Request, Answer]]:
        """Yield each request and its answer, in the order in which they come.

        Requests are taken from the iterable one by one as workers become free.

        Args:
            timeout: seconds for one request, without the worker's start.
            deadline: `time.monotonic()` at which everything stops; what is unanswered then,
                begun or not, is never yielded.

        Raises:
            PrimusError: a worker cannot even load the backend.
        """
        queue = iter(requests)
        while True:
            while len(self._busy) < self._size and time.monotonic() < deadline:
                item = next(queue, None)
                if item is None:
                    break
                self._give(item, timeout)
            if not self._busy:
                return
            yield from self._collect(timeout, deadline)
            if time.monotonic() >= deadline:
                for worker in list(self._busy):
                    self._end(worker)
                self._busy.clear()
                return

    def _give(self, request: Request, timeout: float) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        self._busy[worker] = request
        if worker.ready:
            worker.send(request, timeout)

    def _start(self) -> _Worker:
        worker = _Worker(self._spec, self._environment)
        self._selector.register(worker, selectors.EVENT_READ)
        return worker

    def _end(self, worker: _Worker, grace: float = 0.0) -> str:
        self._selector.unregister(worker)
        return worker.kill(grace)

    def _collect(self, timeout: float, deadline: float) -> Iterator[tuple[Request, Answer]]:
        """Wait for the next event and yield the answers that it brings."""
        first = min(deadline, *(worker.deadline for worker in self._busy))
        wait = max(0.0, first - time.monotonic())
        for key, _ in self._selector.select(None if wait == float("inf") else wait):
            worker = key.fileobj
            assert isinstance(worker, _Worker)
            lines = worker.read()
            if lines is None:
                yield from self._died(worker)
                continue
            for line in lines:
                yield from self._hear(worker, line, timeout)
        now = time.monotonic()
        if now >= deadline:
            return
        for worker in [w for w in self._busy if w.deadline <= now]:
            request = self._busy.pop(worker)
            self._end(worker)
            if not worker.ready:
                raise PrimusError(f"a measuring process did not start in {START_SECONDS:.0f} s")
            yield request, Answer({}, f"timeout after {timeout:g} s", timed_out=True)

    def _hear(
        self, worker: _Worker, line: dict[str, Any], timeout: float
    ) -> Iterator[tuple[Request, Answer]]:
        request = self._busy[worker]
        if not worker.ready:
            worker.ready = True
            worker.send(request, timeout)
            return
        del self._busy[worker]
        self._idle.append(worker)
        error = line.get("error")
        yield request, Answer({}, str(error)) if error is not None else Answer(line)

    def _died(self, worker: _Worker) -> Iterator[tuple[Request, Answer]]:
        # Its output is closed before its exit status is known.
        how = self._end(worker, grace=5.0)
        if worker in self._idle:
            self._idle.remove(worker)
            return
        request = self._busy.pop(worker)
        if not worker.ready:
            raise PrimusError(f"a measuring process ended at its start with {how}")
        yield request, Answer({}, f"the measuring process ended with {how}")
