"""Saving during training: at once, or in a thread behind the next iterations."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from primus.errors import CheckpointError, PrimusError
from primus.trainer.checkpoint import TrainingState, snapshot
from primus.trainer.checkpoint_write import Group, Snapshot, Staging, first_cause, write
from primus.trainer.retention import Retention, delete, superfluous

logger = logging.getLogger(__name__)


class Saver:
    """Saves the state of a run and deletes what need not be kept; at most one save at a time.

    At once, `save` returns when the checkpoint is published. Behind the training, it returns when
    the state has been copied. A thread then does the rest, with collectives in a group of its own;
    the next `save`, and the end of the training, wait for it.
    """

    def __init__(
        self,
        root: Path,
        about: dict[str, Any],
        retention: Retention,
        may_write: Callable[[], None],
        *,
        async_timeout: timedelta | None = None,
    ) -> None:
        """Collective where `async_timeout` is given.

        Args:
            root: the run's checkpoint directory.
            about, may_write: as of `checkpoint_write.write`.
            async_timeout: save behind the training; ranks wait for each other for so long.
        """
        self._root, self._about = root, about
        self._retention, self._may_write = retention, may_write
        self._staging: Staging | None = None
        self._group: Group = None
        if async_timeout is not None:
            self._staging = Staging()
            self._group = distributed.new_group(backend="gloo", timeout=async_timeout)
        self._flight: threading.Thread | None = None
        self._error: BaseException | None = None
        # Of the first rank, until its checkpoint was published.
        self.longest_seconds = 0.0
        # Of this rank, in all saves together.
        self.held_up_seconds = 0.0

    def save(self, state: TrainingState) -> float:
        """Save `state`; collective over all ranks.

        Returns:
            seconds for which the caller was held up.

        Raises:
            CheckpointError: this save failed, or the one before it that was still under way.
        """
        started = time.monotonic()
        self._land()
        taken = snapshot(state, self._staging)
        if self._staging is None:
            self._write(taken, started)
        else:
            held_up = time.monotonic() - started
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            self._flight = threading.Thread(
                target=self._fly, args=(device, taken, started, held_up), name="save", daemon=True
            )
            self._flight.start()
        seconds = time.monotonic() - started
        self.held_up_seconds += seconds
        return seconds

    @property
    def failed(self) -> bool:
        """Whether a save behind the training has failed on this rank; `wait` then says how."""
        return self._error is not None

    def wait(self) -> None:
        """Until nothing is being saved; collective where something is.

        Raises:
            CheckpointError: the save failed, on all ranks alike.
        """
        started = time.monotonic()
        try:
            self._land()
        finally:
            self.held_up_seconds += time.monotonic() - started

    def _land(self) -> None:
        if self._flight is not None:
            self._flight.join()
            self._flight = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait_after_failure(self) -> None:
        """As `wait`, when something else has failed on all ranks: what is said then is that."""
        try:
            self.wait()
        except PrimusError as error:
            logger.warning("%s", error)

    def _fly(self, device: int | None, taken: Snapshot, started: float, held_up: float) -> None:
        if device is not None:
            # A thread begins on the first GPU: all ranks of a node would open it.
            torch.cuda.set_device(device)
        try:
            self._write(taken, started, held_up)
        except PrimusError as error:
            self._error = error
        except BaseException as error:
            # A thread's traceback would be lost on the way; the loop raises this one.
            logger.exception("the save of iteration %d failed", taken.progress["iteration"])
            self._error = CheckpointError(f"{self._root}: cannot save: {first_cause(error)}")

    def _write(self, taken: Snapshot, started: float, held_up: float | None = None) -> None:
        path = write(taken, self._root, self._about, self._may_write, self._group)
        if distributed.get_rank() != 0:
            return
        seconds = time.monotonic() - started
        self.longest_seconds = max(self.longest_seconds, seconds)
        held = "" if held_up is None else f"; training waited for {held_up:.1f} s of it"
        iteration = taken.progress["iteration"]
        print(f"iteration {iteration:>8} | saved {path} in {seconds:.1f} s{held}", flush=True)
        delete(superfluous(self._root, self._about["key"], self._retention, path))
