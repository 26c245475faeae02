"""Whether a node's ranks get on; where each of them is when they do not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.failure import RankStanding
from primus.ranks.ends import catches
from primus.ranks.progress import ASK_FOR_STACKS, PROGRESS, STACKS, Progress, read_progress

_ANSWER_SECONDS = 3.0
# Of the states in /proc those in which a process hears no signal.
_STATES = {"T": "stopped", "t": "stopped", "D": "waiting for a device or file system"}
# Where Python waits for other ranks.
_MEETING_PLACES = re.compile(r"torch/distributed/|megatron/core/pipeline_parallel/p2p")
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """For how long a rank may say nothing.

    Attributes:
        seconds: once it has finished an iteration in this attempt.
        start_seconds: before, which includes loading, compiling and the first iteration.
    """

    seconds: float
    start_seconds: float

    def of(self, progress: Progress | None) -> float:
        """What holds for a rank."""
        started = progress is not None and progress.iterations > 0
        return self.seconds if started else max(self.seconds, self.start_seconds)


@dataclass(kw_only=True)
class _Watched:
    """A rank, by its files; when it last said something new, by this process's clock."""

    rank: int
    progress: Path
    stacks: Path
    step: int
    since: float


class Watch:
    """The ranks of this node.

    Args:
        progress: directory of files on this node's own disk.
        stacks: by local rank the file for its stacks.
        first: number of the node's first rank of all.
    """

    def __init__(self, progress: Path, stacks: Mapping[int, Path], first: int) -> None:
        self._ranks = {
            number: _Watched(
                rank=first + number,
                progress=progress / str(number),
                stacks=path,
                step=0,
                since=time.monotonic(),
            )
            for number, path in stacks.items()
        }

    def environment(self, number: int) -> dict[str, str]:
        """What a local rank must have set."""
        watched = self._ranks[number]
        return {PROGRESS: str(watched.progress), STACKS: str(watched.stacks)}

    def iteration(self, number: int) -> int | None:
        """The last that a local rank has finished, as far as is known."""
        found = read_progress(self._ranks[number].progress)
        return found.iteration if found is not None and found.iteration >= 0 else None

    def stuck(self, running: Iterable[int], patience: Patience) -> bool:
        """Whether one of the running local ranks has said nothing for too long."""
        now, found = time.monotonic(), False
        for number in running:
            watched, progress = self._ranks[number], read_progress(self._ranks[number].progress)
            if progress is not None and progress.step != watched.step:
                watched.step, watched.since = progress.step, now
            found |= now - watched.since > patience.of(progress)
        return found

    def survey(self, running: Mapping[int, int]) -> list[RankStanding]:
        """Ask the running local ranks for their stacks, and say where each of them is.

        Args:
            running: process numbers by local rank.
        """
        for pid in running.values():
            # It would end a rank that does not know it yet.
            if catches(pid, ASK_FOR_STACKS):
                with suppress(ProcessLookupError):
                    os.kill(pid, ASK_FOR_STACKS)
        end = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < end and not all(map(self._has_answered, running)):
            time.sleep(0.05)
        # The rest of a dump that has begun.
        time.sleep(0.1 if running else 0)
        return [self._standing(number, pid) for number, pid in running.items()]

    def _has_answered(self, number: int) -> bool:
        return "Current thread" in _text(self._ranks[number].stacks)

    def _standing(self, number: int, pid: int) -> RankStanding:
        watched = self._ranks[number]
        progress = read_progress(watched.progress)
        stacks = _text(watched.stacks)
        # The thread that hears signals is the main one.
        own = stacks.partition("Current thread")[2]
        frame = _FRAME.search(own)
        return RankStanding(
            rank=watched.rank,
            local_rank=number,
            step=progress.step if progress else 0,
            iteration=progress.iteration if progress else -1,
            phase=progress.phase if progress else "start",
            silent_seconds=time.monotonic() - watched.since,
            state=_STATES.get(_state(pid), "running"),
            answered=self._has_answered(number),
            waits=_waits(stacks),
            where=f"{frame[3]} ({Path(frame[1]).name}:{frame[2]})" if frame else "",
        )


def _waits(stacks: str) -> bool:
    """Whether a thread stands in a call by which ranks wait for each other."""
    threads = re.split(r"^(?=Thread 0x|Current thread)", stacks, flags=re.MULTILINE)
    innermost = (_FRAME.findall(thread)[:3] for thread in threads)
    return any(_MEETING_PLACES.search(file) for frames in innermost for file, _, _ in frames)


def _state(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/stat")).rpartition(") ")[2][:1]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
