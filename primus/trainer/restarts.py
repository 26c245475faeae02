"""A job that SLURM starts again by itself: how its earlier turns ended, and when to stop it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from primus.artifacts.run import Attempt, read_attempts
from primus.errors import TrainingError
from primus.files import read_json
from primus.trainer import run_directory

# Turns of a job, started by SLURM after a lost node, say, that may pass without a new checkpoint.
_TURNS = 3


def refuse_endless(directory: Path) -> None:
    """Refuse the next turn of a job whose last ones brought nothing; a job of its own may try.

    Raises:
        TrainingError: SLURM has started this job again and again without a new checkpoint.
    """
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or "0")
    turns = _fruitless(directory)
    if restarts < _TURNS or turns < _TURNS:
        return
    raise TrainingError(
        f"{directory}: SLURM has started job {os.environ.get('SLURM_JOB_ID')} {restarts} times "
        f"again without a new checkpoint in its last {turns} turns; it is not tried once more. "
        "Fix: see attempts/*/logs, lower save_interval or leave bad nodes out with slurm.exclude, "
        "then start it again"
    )


def _fruitless(directory: Path) -> int:
    """How many of the last attempts started ranks where the run still is."""
    newest, count = run_directory.newest_checkpoint(directory), 0
    for attempt in sorted((directory / "attempts").glob("*"), reverse=True):
        if _parent(attempt) != newest:
            break
        count += (attempt / "logs").is_dir()
    return count


def _parent(attempt: Path) -> Any:
    try:
        return read_json(attempt / "about.json")["parent"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def close_earlier(directory: Path, last: Attempt) -> None:
    """Say of earlier attempts that ended without a word what is known of them."""
    for attempt in read_attempts(directory):
        if attempt.number >= last.number or attempt.status != "running":
            continue
        reason = "ended without a word: it was killed, or its node was lost"
        if attempt.job is not None and attempt.job == last.job:
            reason += f"; SLURM started job {attempt.job} again"
        attempt.model_copy(update={"status": "failed", "reason": reason}).save(
            directory / "attempts" / f"{attempt.number:03d}" / "attempt.json"
        )
