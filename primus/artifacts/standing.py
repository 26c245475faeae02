"""How far a stage that runs now is: a small file beside its artefact, gone when the stage ends.

`python -m primus.status` reads it and nothing else does: whatever goes wrong with it must not
touch the stage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from primus.files import atomic_write
from primus.processes import started as process_started

# Between two writes: a stage may say how far it is as often as it likes.
_SECONDS = 2.0


class Standing(BaseModel):
    """A stage that runs, or whose process was killed.

    Attributes:
        pid, began: of its process; numbers of processes come again.
        job: number of the SLURM job; null outside of one.
        started: seconds since the epoch, as `first_time` and `time`.
        done, total: in `unit`; a null total is not known.
        first, first_time: what was done when it was first said, as after a resume, and when.
        time: when `done` was said; null: nothing is said yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    stage: str
    host: str
    pid: int
    began: float | None
    job: str | None
    started: float
    done: int = 0
    total: int | None = None
    unit: str = ""
    first: int = 0
    first_time: float | None = None
    time: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """By the pace since it first said how far it is; None while that is not known."""
        if self.total is None or self.time is None or self.first_time is None:
            return None
        if self.done <= self.first or self.time <= self.first_time:
            return None
        pace = (self.time - self.first_time) / (self.done - self.first)
        return max(0.0, (self.total - self.done) * pace)


class _Note:
    """The file of the stage that this process runs."""

    def __init__(self, stage: str, output: Path | str) -> None:
        self._path = standing_path(output)
        self._written = 0.0
        self._standing = Standing(
            stage=stage,
            host=os.uname().nodename,
            pid=os.getpid(),
            began=process_started(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID"),
            started=time.time(),
        )

    def write(self) -> None:
        self._written = time.monotonic()
        # A full disk is the stage's to find out, by what matters.
        with suppress(OSError), atomic_write(self._path) as stream:
            stream.write(self._standing.model_dump_json() + "\n")

    def say(self, done: int, total: int | None, unit: str) -> None:
        now = time.time()
        before = self._standing
        first = {"first": done, "first_time": now} if before.time is None else {}
        changes = {"done": done, "total": total, "unit": unit, "time": now}
        self._standing = before.model_copy(update=changes | first)
        if not before.time or time.monotonic() - self._written >= _SECONDS or done == total:
            self.write()

    def remove(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


# A process runs one stage.
_note: _Note | None = None


@contextmanager
def standing(stage: str, output: Path | str) -> Iterator[None]:
    """Keep the file as long as the body runs."""
    global _note
    _note = _Note(stage, output)
    _note.write()
    try:
        yield
    finally:
        _note.remove()
        _note = None


def say(done: int, total: int | None, unit: str) -> None:
    """Note how far the stage of this process is; nothing where it runs none.

    Args:
        done, total: in `unit`, such as "bytes"; a total of None is not known.
    """
    if _note is not None:
        _note.say(done, total, unit)


def standing_path(output: Path | str) -> Path:
    """Where the stage that makes `output` notes how far it is."""
    output = Path(output)
    return output.with_name(output.name + ".running.json")


def read_standing(output: Path | str) -> Standing | None:
    """What the stage that makes `output` noted; None where there is nothing, or no whole note."""
    try:
        return Standing.model_validate_json(standing_path(output).read_bytes())
    except (OSError, ValueError):
        return None
