"""Worker processes, each with one request at a time and a time limit per request."""

from __future__ import annotations

import json
import selectors
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from typing_extensions import Self

from primus.errors import PrimusError
from primus.gemm.backends.base import BackendSpec
from primus.gemm.process import Process, register, unregister

# Loading torch from a slow network file system takes its time; this is no measurement.
START_SECONDS = 300.0
# A request that ends its process or lasts too long is tried this often in all.
TRIES = 2

Request = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        content: the worker's answer; empty when there is none.
        failure: why there is none.
        timed_out: the failure is the time limit.
        tries: how often the request was handed to a process.
        host: where it was measured; None: on this machine.
    """

    content: dict[str, Any]
    failure: str | None = None
    timed_out: bool = False
    tries: int = 1
    host: str | None = None


class Measuring(ABC):
    """Whatever answers requests: processes of this machine, or of several nodes.

    Use it as a context manager: leaving it ends every process.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End every process."""

    @abstractmethod
    def run(
        self, requests: Iterable[Request], *, timeout: float, deadline: float = float("inf")
    ) -> Iterator[tuple[Request, Answer]]:
        """As `Pool.run`."""


@dataclass(frozen=True)
class _Task:
    request: Request
    tries: int = 1


class Pool(Measuring):
    """Up to `workers` processes of one backend, started when the first request comes.

    Args:
        environment: variables of every process.
        environment_of: further variables of the process that fills a place, numbered from 0.
    """

    def __init__(
        self,
        spec: BackendSpec,
        workers: int,
        environment: Mapping[str, str] | None = None,
        environment_of: Callable[[int], Mapping[str, str]] | None = None,
    ) -> None:
        threads = {"OMP_NUM_THREADS": str(spec.threads), "MKL_NUM_THREADS": str(spec.threads)}
        worker = json.dumps(spec.to_json())
        self._command = [sys.executable, "-m", "primus.gemm.worker", worker]
        self._size = workers
        self._environment = {**(environment or {}), **(threads if spec.threads else {})}
        self._environment_of = environment_of or (lambda number: {})
        self._places = list(range(workers))
        self._idle: list[Process] = []
        self._busy: dict[Process, _Task] = {}
        self._again: deque[_Task] = deque()
        self._selector = selectors.DefaultSelector()

    def close(self) -> None:
        """End every process."""
        for process in [*self._idle, *self._busy]:
            self._end(process)
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

        Requests are taken from the iterable one by one as workers become free. One whose worker
        or whose library's tool died, or that lasted too long, is tried once more after all others,
        where the deadline leaves a whole `timeout` for that; the second failure is its answer.

        Args:
            timeout: seconds for one request, without the worker's start.
            deadline: `time.monotonic()` at which everything stops; what is unanswered then,
                begun or not, is never yielded.

        Raises:
            PrimusError: a worker cannot even load the backend.
        """
        queue = iter(requests)
        self._again.clear()
        while True:
            while len(self._busy) < self._size and time.monotonic() < deadline:
                task = self._next(queue)
                if task is None:
                    break
                self._give(task, timeout)
            if not self._busy:
                return
            yield from self._collect(timeout, deadline)
            if time.monotonic() >= deadline:
                for process in list(self._busy):
                    self._end(process)
                self._busy.clear()
                return

    def _next(self, queue: Iterator[Request]) -> _Task | None:
        request = next(queue, None)
        if request is not None:
            return _Task(request)
        return self._again.popleft() if self._again else None

    def _give(self, task: _Task, timeout: float) -> None:
        process = self._idle.pop() if self._idle else self._start()
        self._busy[process] = task
        if process.ready:
            process.send(task.request, timeout)

    def _start(self) -> Process:
        number = min(self._places)
        self._places.remove(number)
        environment = {**self._environment, **self._environment_of(number)}
        process = Process(self._command, number, environment, START_SECONDS)
        register(self._selector, process)
        return process

    def _end(self, process: Process, grace: float = 0.0) -> tuple[str, str]:
        """How it ended, and its last words."""
        unregister(self._selector, process)
        self._places.append(process.number)
        how = process.end(grace)
        words = process.last_words()
        process.close()
        return how, words

    def _collect(self, timeout: float, deadline: float) -> Iterator[tuple[Request, Answer]]:
        """Wait for the next event and yield the answers that it brings."""
        first = min(deadline, *(process.deadline for process in self._busy))
        wait = max(0.0, first - time.monotonic())
        ended: list[Process] = []
        for key, _ in self._selector.select(None if wait == float("inf") else wait):
            process, is_answer = key.data
            if not is_answer:
                if not process.listen():
                    self._selector.unregister(key.fileobj)
                continue
            lines = process.read()
            if lines is None:
                ended.append(process)
                continue
            for line in lines:
                yield from self._hear(process, line, timeout, deadline)
        for process in ended:
            yield from self._died(process, timeout, deadline)
        now = time.monotonic()
        if now >= deadline:
            return
        for process in [p for p in self._busy if p.deadline <= now]:
            yield from self._is_late(process, timeout, deadline)

    def _hear(
        self, process: Process, line: dict[str, Any], timeout: float, deadline: float
    ) -> Iterator[tuple[Request, Answer]]:
        task = self._busy[process]
        if not process.ready:
            process.ready = True
            process.send(task.request, timeout)
            return
        del self._busy[process]
        self._idle.append(process)
        error = line.get("error")
        if error is None:
            yield task.request, Answer(line, tries=task.tries)
            return
        answer = Answer({}, str(error), tries=task.tries)
        if line.get("again"):
            yield from self._failed(task, answer, timeout, deadline)
        else:
            yield task.request, answer

    def _died(
        self, process: Process, timeout: float, deadline: float
    ) -> Iterator[tuple[Request, Answer]]:
        # Its output is closed before its exit status is known.
        how, words = self._end(process, grace=5.0)
        if process in self._idle:
            self._idle.remove(process)
            return
        task = self._busy.pop(process)
        if not process.ready:
            raise PrimusError(
                with_words(f"a measuring process ended at its start with {how}", words)
            )
        failure = with_words(f"the measuring process ended with {how}", words)
        yield from self._failed(task, Answer({}, failure, tries=task.tries), timeout, deadline)

    def _is_late(
        self, process: Process, timeout: float, deadline: float
    ) -> Iterator[tuple[Request, Answer]]:
        task = self._busy.pop(process)
        _, words = self._end(process)
        if not process.ready:
            failure = f"a measuring process did not start in {START_SECONDS:.0f} s"
            raise PrimusError(with_words(failure, words))
        failure = with_words(f"timeout after {timeout:g} s", words)
        answer = Answer({}, failure, timed_out=True, tries=task.tries)
        yield from self._failed(task, answer, timeout, deadline)

    def _failed(
        self, task: _Task, answer: Answer, timeout: float, deadline: float
    ) -> Iterator[tuple[Request, Answer]]:
        if task.tries < TRIES and time.monotonic() + timeout < deadline:
            self._again.append(_Task(task.request, task.tries + 1))
        else:
            yield task.request, answer


def with_words(failure: str, words: str) -> str:
    """A failure and the last words of the process, where it had any."""
    return f"{failure}: {words}" if words else failure
