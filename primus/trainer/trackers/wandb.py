"""Weights & Biases: one run there for all attempts, offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.files import atomic_write
from primus.trainer.trackers import TrackedRun


class WandB:
    """A row that was logged before is not logged again: rows there cannot be replaced.

    Attributes:
        logged: the last iteration of each kind of rows; kept in a file, because an offline run
            cannot be asked.
    """

    def __init__(self, run: Any, logged: Path) -> None:
        self._run, self._path = run, logged
        self.logged: dict[str, int] = json.loads(logged.read_text()) if logged.exists() else {}
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")

    def log(self, kind: str, values: Mapping[str, float], iteration: int, time: float) -> None:
        """As `Tracker.log`."""
        if iteration <= self.logged.get(kind, -1):
            return
        named = {f"{kind}/{name}": value for name, value in values.items()}
        self._run.log({"iteration": iteration, "time": time, **named})
        self.logged[kind] = iteration
        with atomic_write(self._path) as stream:
            json.dump(self.logged, stream)

    def close(self, *, finished: bool) -> None:
        """As `Tracker.close`."""
        self._run.finish(exit_code=0 if finished else 1)


def open_tracker(run: TrackedRun) -> WandB:
    """The run whose id is experiment and key; its files lie in wandb/ in the run's directory."""
    # What goes wrong there is told nobody else.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    name, settings = f"{run.experiment}-{run.key}", run.settings
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    made = wandb.init(
        project=settings.wandb_project,
        entity=settings.wandb_entity,
        name=settings.wandb_exp_name or name,
        id=name,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=str(run.directory),
        config=dict(run.values),
        settings=wandb.Settings(console="off", disable_code=True, disable_git=True, silent=True),
    )
    return WandB(made, run.directory / "wandb" / "logged.json")
