"""TensorBoard: event files, one more for each attempt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from primus.trainer.trackers import TrackedRun


class TensorBoard:
    """Of rows that come again after a resume TensorBoard shows the later ones alone."""

    def __init__(self, directory: Path, *, purge_step: int | None) -> None:
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)

    def log(self, kind: str, values: Mapping[str, float], iteration: int, time: float) -> None:
        """As `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, iteration, time)
        # A killed attempt keeps what it logged.
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        """As `Tracker.close`."""
        self._writer.close()


def open_tracker(run: TrackedRun) -> TensorBoard:
    """Event files in the run's directory, or where `tensorboard_dir` says."""
    root = run.settings.tensorboard_dir
    directory = Path(root, run.experiment, run.key) if root else run.directory / "tensorboard"
    return TensorBoard(directory, purge_step=run.iteration + 1 if run.attempt > 1 else None)
