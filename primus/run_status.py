"""How the runs below output/runs are, read from what each left behind. Nothing is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.run import Attempt, MetricsRow, TrainManifest, read_attempts
from primus.config.paths import ARTIFACT, RUNS
from primus.errors import ArtifactError, RunConflictError
from primus.files import last_parsed
from primus.slurm.job import key_of
from primus.slurm.queue import QueuedJob
from primus.slurm.submit import DIRECTORY
from primus.trainer.lease import writer_of

# Metrics rows are shorter; the last whole one lies in here.
_TAIL_BYTES = 1 << 14


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run.

    Attributes:
        state: finished, running, queued, starting, preempted, failed, stopped (ended without a
            word), or new.
        target: `train_iters` of the last attempt; None where no attempt has said.
        seconds_left: from the last rate; None where nothing trains.
        updated: seconds since the epoch of the last metrics row or attempt.
        where: who writes, which job waits, or why the last attempt ended.
        mendable: it failed by a mistake that the user can mend; `where` says how.
    """

    experiment: str
    key: str
    state: str
    iteration: int
    target: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    attempts: int
    updated: float | None
    where: str
    mendable: bool = False


def statuses(
    experiments: Sequence[str] = (), jobs: Sequence[QueuedJob] = (), root: Path = RUNS
) -> list[RunStatus]:
    """Every run below `root`, what was updated last first.

    Args:
        experiments: only these; empty: all.
        jobs: of this user that wait or run.
    """
    found = [
        status_of(directory, jobs)
        for directory in root.glob("*/*")
        if directory.is_dir() and (not experiments or directory.parent.name in experiments)
    ]
    return sorted(found, key=lambda run: -(run.updated or 0.0))


def other_jobs(
    experiments: Sequence[str], jobs: Sequence[QueuedJob], root: Path = RUNS
) -> list[QueuedJob]:
    """Those of `jobs` that work for this directory and train no run that is there.

    Args:
        experiments: leave out what belongs to others; empty: all.
    """
    trains = {_train_key(directory) for directory in root.glob("*/*")}
    return [
        job
        for job in jobs
        if job.key not in trains
        and any(DIRECTORY.glob(f"{job.key}.*"))
        # A group's name holds no experiment.
        and (not experiments or _owner(job) in (*experiments, ""))
    ]


def _owner(job: QueuedJob) -> str:
    return job.name.partition(".")[2]


def _train_key(directory: Path) -> str:
    made = ARTIFACT["train"].format(experiment=directory.parent.name, key=directory.name)
    return key_of("train", [made])


def status_of(directory: Path, jobs: Sequence[QueuedJob] = ()) -> RunStatus:
    """One run.

    Args:
        jobs: of this user that wait or run.
    """
    tried = read_attempts(directory)
    last = tried[-1] if tried else None
    rows = directory / "metrics.jsonl"
    row = last_parsed(rows, _TAIL_BYTES, MetricsRow.model_validate_json)
    iteration = row.iteration if row is not None else 0
    target = _target(directory, last)
    state, where = _state(directory, last, jobs, target)
    left = None
    if state == "running" and row is not None and target is not None:
        left = (target - iteration) * row.seconds_per_iteration
    times = [row.time] if row is not None else []
    times += [last.finished or last.started] if last is not None else []
    return RunStatus(
        experiment=directory.parent.name,
        key=directory.name,
        state=state,
        iteration=iteration,
        target=target,
        loss=row.loss if row is not None else None,
        tokens_per_second=row.tokens_per_second if row is not None else None,
        seconds_left=left,
        attempts=len(tried),
        updated=max(times, default=None),
        where=where,
        mendable=state == "failed" and last is not None and last.mendable,
    )


def _state(
    directory: Path, last: Attempt | None, jobs: Sequence[QueuedJob], target: int | None
) -> tuple[str, str]:
    try:
        writer = writer_of(directory)
    except RunConflictError as error:
        return "stopped", str(error)
    if writer is not None:
        return "running", writer
    key = _train_key(directory)
    job = next((job for job in jobs if job.key == key), None)
    if job is not None:
        return ("queued" if job.state == "PENDING" else "starting"), f"{job} {job.where}".rstrip()
    if _finished(directory / "train.json", target):
        return "finished", ""
    if last is None:
        return "new", ""
    if last.status in ("preempted", "failed"):
        return last.status, last.reason
    return "stopped", "" if last.status == "completed" else "the last attempt ended without a word"


def _finished(path: Path, target: int | None) -> bool:
    try:
        return path.exists() and TrainManifest.load(path).iteration >= (target or 0)
    except ArtifactError:
        return False


def _target(directory: Path, last: Attempt | None) -> int | None:
    if last is None:
        return None
    about = directory / "attempts" / f"{last.number:03d}" / "about.json"
    try:
        return int(json.loads(about.read_text(encoding="utf-8"))["settings"]["train_iters"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
