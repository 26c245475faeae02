"""Where a run's figures also go: one file per tracker, and a guard around each.

A tracker is optional in every sense. It runs in a thread of its own, because one that waits for a
network must not hold up an iteration; what it raises is told once, and the training goes on without
it. `metrics.jsonl` has every figure whatever becomes of the trackers.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from primus.config.frozen import StageSettings
from primus.hidden import hide

logger = logging.getLogger(__name__)

# Rows that wait for a tracker; one row per log line comes.
_WAITING = 1000
_CLOSE_SECONDS = 60.0
# For one that has failed: its thread may just be telling so.
_LEAVE_SECONDS = 1.0
_LONGEST_REASON = 300


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        attempt, iteration: this start of the trainer, and the iteration after which it goes on.
        settings: the train stage's, for the tracker's own keys.
        values: identity and extent of the run, for people.
    """

    directory: Path
    experiment: str
    key: str
    attempt: int
    settings: StageSettings
    values: Mapping[str, Any]
    iteration: int = 0


class Tracker(Protocol):
    """What each module here gives as `open_tracker(run)`; it may raise anything at any time."""

    def log(self, kind: str, values: Mapping[str, float], iteration: int, time: float) -> None:
        """Take one row.

        Args:
            kind: of the row, `train` or `valid`; a resumed run may bring rows again.
            time: seconds since the epoch.
        """

    def close(self, *, finished: bool) -> None:
        """The attempt is over; `finished`: so is the run."""


def wanted(settings: StageSettings) -> list[str]:
    """Names of the trackers that the settings ask for."""
    asked = {
        "tensorboard": settings.tensorboard,
        "wandb": settings.wandb_project is not None,
        "mlflow": settings.mlflow_experiment_name is not None,
    }
    return [name for name, is_asked in asked.items() if is_asked]


class Trackers:
    """All trackers of one attempt; nothing here raises, and nothing waits but `wait`."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._guards: list[_Guard] = []

    def begin(self, iteration: int) -> None:
        """Open them; the attempt goes on after `iteration`."""
        run = replace(self._run, iteration=iteration)
        self._guards = [_Guard(name, run) for name in wanted(run.settings)]

    def log(self, kind: str, values: Mapping[str, float], iteration: int, time: float) -> None:
        """Give one row to each, as `Tracker.log`."""
        for guard in self._guards:
            guard.put((kind, values, iteration, time))

    def end(self, *, finished: bool) -> None:
        """Tell each that the attempt is over, as `Tracker.close`."""
        for guard in self._guards:
            guard.put((finished,))

    def wait(self) -> bool:
        """For each to take what it was given, a minute at most; whether all of them have ended."""
        ended = [guard.join() for guard in self._guards]
        return all(ended)


class _Guard:
    """One tracker in its thread."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name, self._run = name, run
        self._rows: queue.Queue[tuple[Any, ...]] = queue.Queue(_WAITING)
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, row: tuple[Any, ...]) -> None:
        if self._failed.is_set():
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._fail(f"{_WAITING} rows wait for it")

    def join(self) -> bool:
        self._thread.join(_LEAVE_SECONDS if self._failed.is_set() else _CLOSE_SECONDS)
        alive = self._thread.is_alive()
        if alive:
            self._fail(f"it has not ended for {_CLOSE_SECONDS:.0f} s")
        return not alive

    def _work(self) -> None:
        try:
            module = importlib.import_module(f"{__name__}.{self._name}")
            tracker: Tracker = module.open_tracker(self._run)
            while not self._failed.is_set():
                row = self._rows.get()
                if len(row) == 1:
                    tracker.close(finished=row[0])
                    return
                tracker.log(*row)
        except (Exception, SystemExit) as error:
            self._fail(_reason(self._name, error))

    def _fail(self, reason: str) -> None:
        if self._failed.is_set():
            return
        self._failed.set()
        logger.warning("%s: %s. Training goes on without it", self._name, reason)


def _reason(name: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. Fix: pip install -e '.[{name}]'"
    # Others write the error's text, and may quote what they were called with.
    words = " ".join(hide(str(error)).split())[:_LONGEST_REASON]
    return f"{type(error).__name__}: {words}"
