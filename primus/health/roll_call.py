"""Ask every node of a job how it is, before any rank starts; one that does not answer is known.

The answers come through srun, not through a file: a node whose disk is broken answers, too.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from primus.artifacts.preflight import ClockReport, NodeReport
from primus.launch import end_hard, one_per_node

_PINGS, _PING_SECONDS, _END_SECONDS = 3, 5.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the nodes said, in the order of their numbers; some may be missing."""

    nodes: list[NodeReport]
    clocks: list[ClockReport]


def roll_call(*, nodes: int, step: bool, directory: Path, token: str, limit: float) -> Answers:
    """Start `primus.preflight_node` on every node and hear what each says.

    Args:
        step: as a step of this SLURM job; otherwise on this machine, which is then the only node.
        directory: that the nodes share.
        token: what `primus.health.disk.leave_token` has left in it.
        limit: seconds to wait for those that do not answer.
    """
    srun = [*one_per_node(nodes), "--kill-on-bad-exit=0", "--cpu-bind=none", "--unbuffered"]
    command = [sys.executable, "-u", "-m", "primus.preflight_node"]
    process = subprocess.Popen(
        [*(srun if step else ()), *command, "--directory", str(directory), "--token", token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A signal for the job is not for this step: it ends soon anyway.
        start_new_session=True,
    )
    call = _Call(process)
    try:
        call.hear_reports(nodes, limit)
        for _ in range(_PINGS):
            call.ask_the_time()
    finally:
        call.end()
    return Answers(
        nodes=[call.reports[node] for node in sorted(call.reports)],
        clocks=[call.clocks[node] for node in sorted(call.clocks)],
    )


class _Call:
    """The running step, and what has been heard so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.reports: dict[int, NodeReport] = {}
        self.clocks: dict[int, ClockReport] = {}
        # (when it came, the line); an empty line: nothing more comes.
        self._lines: queue.Queue[tuple[float, str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.time(), line))
        self._lines.put((time.time(), ""))

    def _hear(self, end: float) -> tuple[float, str] | None:
        """The next line; None where none comes before `end` or nothing more comes."""
        try:
            came, line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return None
        if not line:
            self._lines.put((came, line))
            return None
        return came, line

    def hear_reports(self, nodes: int, limit: float) -> None:
        """Until every node has spoken, or `limit` seconds are over."""
        end = time.monotonic() + limit
        while len(self.reports) < nodes and (heard := self._hear(end)) is not None:
            try:
                report = NodeReport.model_validate_json(heard[1])
            except ValidationError:
                # Something else that speaks at login or at start.
                print(heard[1].rstrip(), file=sys.stderr, flush=True)
                continue
            self.reports[report.node] = report

    def ask_the_time(self) -> None:
        """Narrow down each node's clock by one more question."""
        assert self._process.stdin is not None
        asked, missing = time.time(), set(self.reports)
        try:
            self._process.stdin.write("now\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return
        end = time.monotonic() + _PING_SECONDS
        while missing and (heard := self._hear(end)) is not None:
            came, line = heard
            try:
                said = json.loads(line)
                node, now = int(said["node"]), float(said["now"])
            except (ValueError, KeyError, TypeError):
                continue
            missing.discard(node)
            clock = ClockReport(node=node, low=now - came, high=now - asked)
            known = self.clocks.get(node)
            if known is None or clock.high - clock.low < known.high - known.low:
                self.clocks[node] = clock

    def end(self) -> None:
        """Let the nodes go; what does not end is killed."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            end_hard(self._process)
        self._reader.join(timeout=_END_SECONDS)
        if not self._reader.is_alive():
            assert self._process.stdout is not None
            self._process.stdout.close()
