"""Measuring on several nodes of a SLURM job: as a pool of processes, with one step per node.

The stage itself runs on the first node and keeps the list of problems. Each node asks for the next
one when it is free, so a fast node takes more; the answers come back over srun's pipes, and the
stage alone writes to the store. A node that is lost gives its problems back.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from primus.errors import PrimusError, UnavailableError
from primus.gemm.backends.base import BackendSpec
from primus.gemm.pool import START_SECONDS, TRIES, Answer, Measuring, Request, with_words
from primus.gemm.process import Process, register, unregister
from primus.gemm.stack import Stack, differences
from primus.launch import with_all_cores
from primus.node import node_names

# A node ends its own work in time; one that says nothing for so long after that is lost.
_SILENT_SECONDS = 60.0
_END_SECONDS = 10.0


def hosts_of_job(nodes: int) -> tuple[str, ...]:
    """The nodes to measure on, as SLURM calls them; none for one node: that is this machine.

    Args:
        nodes: `gemm_tuning.nodes`.

    Raises:
        UnavailableError: this is no SLURM job of so many nodes.
    """
    if nodes == 1:
        return ()
    listed = os.environ.get("SLURM_JOB_NODELIST")
    names = node_names(listed) if listed else []
    if len(names) < nodes:
        here = f"the SLURM job has {len(names)}" if names else "this is no SLURM job"
        raise UnavailableError(
            f"gemm_tuning.nodes = {nodes}: {here}. "
            "Fix: gemm_tuning.nodes: 1, or run on a cluster with --profile slurm"
        )
    return tuple(names[:nodes])


@dataclass(frozen=True)
class _Task:
    request: Request
    tries: int = 1


@dataclass(eq=False)
class _Node:
    """A node, the step on it, and what it is busy with.

    Attributes:
        name: as SLURM calls it.
        places: how many requests it takes at a time; 0 until it has said so.
        late: `time.monotonic()` at which the answer to a task is overdue, by the task's number.
    """

    name: str
    process: Process
    places: int = 0
    tasks: dict[int, _Task] = field(default_factory=dict)
    late: dict[int, float] = field(default_factory=dict)


class Nodes(Measuring):
    """Measuring processes on several nodes, started when the first request comes.

    Args:
        hosts: names of nodes of this job.
        stack: of this machine; each node must have the same.
        workers: requests at a time on each node; None: one per device.
        environment: variables of every measuring process.
    """

    def __init__(
        self,
        spec: BackendSpec,
        hosts: Sequence[str],
        stack: Stack,
        *,
        workers: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._hosts, self._stack = hosts, stack
        told = {"spec": spec.to_json(), "workers": workers, "environment": dict(environment or {})}
        self._command = [sys.executable, "-u", "-m", "primus.gemm.node_worker", json.dumps(told)]
        self._nodes: list[_Node] = []
        self._again: deque[_Task] = deque()
        self._numbers = count()
        self._selector = selectors.DefaultSelector()

    def close(self) -> None:
        """End every step."""
        self._end_all()
        self._selector.close()

    def run(
        self, requests: Iterable[Request], *, timeout: float, deadline: float = float("inf")
    ) -> Iterator[tuple[Request, Answer]]:
        """As `Pool.run`; a request of a node that was lost goes to another one.

        Raises:
            UnavailableError: the nodes differ in their stack.
            PrimusError: a node cannot measure, or none is left.
        """
        queue = iter(requests)
        self._again.clear()
        while True:
            self._hand_out(queue, timeout, deadline)
            if not any(node.tasks for node in self._nodes):
                return
            yield from self._collect(deadline)
            if time.monotonic() >= deadline:
                self._end_all()
                return

    def _hand_out(self, queue: Iterator[Request], timeout: float, deadline: float) -> None:
        """Fill all free places."""
        while (left := deadline - time.monotonic()) > 0:
            node = self._freest()
            if self._nodes and node is None:
                return
            task = self._next(queue)
            if task is None:
                return
            if node is None:
                self._start_all()
                node = self._freest()
                assert node is not None, "every node has a place"
            self._give(node, task, timeout, left)

    def _next(self, queue: Iterator[Request]) -> _Task | None:
        request = next(queue, None)
        if request is not None:
            return _Task(request)
        return self._again.popleft() if self._again else None

    def _freest(self) -> _Node | None:
        """The node with the largest share of free places; None where all are taken."""
        free = [node for node in self._nodes if len(node.tasks) < node.places]
        return min(free, key=lambda node: len(node.tasks) / node.places, default=None)

    def _give(self, node: _Node, task: _Task, timeout: float, left: float) -> None:
        number = next(self._numbers)
        node.tasks[number] = task
        most = min(left, TRIES * (timeout + START_SECONDS)) + _SILENT_SECONDS
        node.late[number] = time.monotonic() + most
        content = {"id": number, "request": task.request, "timeout": timeout}
        node.process.send({**content, "seconds_left": min(left, 1e9)}, most)

    def _start_all(self) -> None:
        """Start the steps, and hear from all what they have before any of them measures."""
        print(f"measuring on {', '.join(self._hosts)}", file=sys.stderr, flush=True)
        for number, host in enumerate(self._hosts):
            step = [*with_all_cores(1), f"--nodelist={host}"]
            node = _Node(host, Process([*step, *self._command], number, {}, START_SECONDS))
            self._nodes.append(node)
            register(self._selector, node.process)
        different: dict[str, list[str]] = {}
        while waiting := [node for node in self._nodes if not node.places]:
            for node, lines in self._events(min(node.process.deadline for node in waiting)):
                if lines is None:
                    how, words = self._end(node)
                    why = f"the measuring process ended at its start with {how}"
                    raise PrimusError(with_words(f"{node.name}: {why}", words))
                for line in lines:
                    node.places = int(line["places"])
                    if found := differences(line["stack"], self._stack.to_json()):
                        different[node.name] = found
            self._refuse_late(waiting)
        if different:
            raise _mixed(different, self._hosts[0])

    def _refuse_late(self, waiting: Sequence[_Node]) -> None:
        late = [n.name for n in waiting if not n.places and n.process.deadline <= time.monotonic()]
        if late:
            raise PrimusError(
                f"{', '.join(late)}: no measuring process started in {START_SECONDS:.0f} s"
            )

    def _events(self, until: float) -> Iterator[tuple[_Node, list[dict[str, Any]] | None]]:
        """What nodes said next: lines, or None where one has ended."""
        wait = max(0.0, until - time.monotonic())
        by_process = {node.process: node for node in self._nodes}
        for key, _ in self._selector.select(None if wait == float("inf") else wait):
            process, is_answer = key.data
            if is_answer:
                yield by_process[process], process.read()
            elif not process.listen():
                self._selector.unregister(key.fileobj)

    def _collect(self, deadline: float) -> Iterator[tuple[Request, Answer]]:
        """Wait for the next event and yield the answers that it brings."""
        overdue = min(min(node.late.values(), default=deadline) for node in self._nodes)
        for node, lines in list(self._events(min(deadline, overdue))):
            if lines is None:
                how, words = self._end(node)
                yield from self._lost(node, with_words(f"ended with {how}", words))
                continue
            for line in lines:
                yield self._hear(node, line)
        now = time.monotonic()
        for node in [n for n in self._nodes if min(n.late.values(), default=now + 1) <= now]:
            self._end(node)
            yield from self._lost(node, "has not answered in time")

    def _hear(self, node: _Node, line: dict[str, Any]) -> tuple[Request, Answer]:
        if "error" in line:
            raise PrimusError(f"{node.name}: {line['error']}")
        number = line.pop("id")
        del node.late[number]
        return node.tasks.pop(number).request, Answer(**line, host=node.name)

    def _lost(self, node: _Node, how: str) -> Iterator[tuple[Request, Answer]]:
        """Give its tasks to the others; one that has now cost several nodes has failed."""
        why = f"{node.name}: the measuring process {how}"
        if not self._nodes:
            raise PrimusError(
                f"{why}; no node is left. Fix: start again: what was measured is kept"
            )
        others = ", ".join(other.name for other in self._nodes)
        print(f"{why}; what it was busy with goes to {others}", file=sys.stderr, flush=True)
        for task in node.tasks.values():
            if task.tries < TRIES:
                self._again.append(_Task(task.request, task.tries + 1))
            else:
                yield task.request, Answer({}, why, tries=task.tries, host=node.name)

    def _end(self, node: _Node) -> tuple[str, str]:
        """End the step on a node; how it ended, and its last words."""
        unregister(self._selector, node.process)
        self._nodes.remove(node)
        node.process.hang_up()
        how = node.process.end(_END_SECONDS)
        words = node.process.last_words()
        node.process.close()
        return how, words

    def _end_all(self) -> None:
        for node in self._nodes:
            node.process.hang_up()
        for node in list(self._nodes):
            self._end(node)


def _mixed(different: Mapping[str, Sequence[str]], here: str) -> UnavailableError:
    each = "; ".join(f"{name}: {', '.join(found)}" for name, found in different.items())
    return UnavailableError(
        f"gemm_tuning.nodes: the nodes of this job differ from {here}: {each}. Fix: ask for equal "
        "nodes with slurm.constraint, or leave these out with slurm.exclude"
    )
