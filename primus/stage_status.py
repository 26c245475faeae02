"""How the stages of one experiment are, from what each stage, run and job left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from primus.artifacts.standing import Standing, read_standing
from primus.artifacts.timing import last_time
from primus.config.identity import StageKey, identities
from primus.config.paths import artifact
from primus.config.pipeline import stages_of
from primus.config.schema.keys import Stage
from primus.config.schema.settings import Settings
from primus.errors import PreemptedError, PrimusError, TrainingError, UserError
from primus.processes import started
from primus.run_status import RunStatus, status_of
from primus.slurm.job import made_by
from primus.slurm.queue import QueuedJob
from primus.slurm.submit import DIRECTORY

State = Literal[
    "waiting", "queued", "starting", "running", "done", "preempted", "failed", "stopped"
]

# What has ended may go on by itself: Snakemake starts the next stage, SLURM a job's next turn.
GRACE_SECONDS = 60.0
# Of a run's states those that a stage calls otherwise.
_OF_RUNS: Mapping[str, State] = {
    "finished": "done",
    "running": "running",
    "queued": "queued",
    "starting": "starting",
    "preempted": "preempted",
    "failed": "failed",
    "stopped": "stopped",
}
_ALIVE = ("queued", "starting", "running")


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage.

    Attributes:
        done, total: in `unit`; None where it is not known.
        why: who runs it, for what it waits, or why it ended.
        ended: when it did, in seconds since the epoch; None where that is not known.
        number: of its SLURM job; empty without one.
    """

    stage: Stage
    state: State
    done: int | None = None
    total: int | None = None
    unit: str = ""
    seconds_left: float | None = None
    why: str = ""
    ended: float | None = None
    number: str = ""

    @property
    def alive(self) -> bool:
        """It runs, or will without anybody's doing."""
        return self.state in _ALIVE


@dataclass(frozen=True)
class Pipeline:
    """The stages that `train_<experiment>` runs.

    Attributes:
        stages: upstream ones first.
    """

    experiment: str
    stages: Mapping[Stage, StageKey]

    @classmethod
    def of(cls, settings: Settings) -> Pipeline:
        """Those of resolved settings."""
        made = identities(settings)
        return cls(settings.experiment, {name: made[name] for name in stages_of(settings, "train")})

    @cached_property
    def run(self) -> Path:
        """The directory of the run."""
        return Path(artifact(self.stages["train"])).parent


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen at one time.

    Attributes:
        run: None before its directory is there.
        remark: why something may not be so: the queue could not be asked, say.
    """

    stages: Sequence[StageStatus]
    run: RunStatus | None
    time: float
    remark: str = ""


def look(pipeline: Pipeline, jobs: Sequence[QueuedJob] | None, remark: str = "") -> Look:
    """How the pipeline is now.

    Args:
        jobs: of this user that wait or run; None: the queue could not be asked.
        remark: see `Look`.
    """
    run = _run(pipeline.run, jobs or ())
    found: list[StageStatus] = []
    for name, made in pipeline.stages.items():
        output = Path(artifact(made))
        status = _noted(name, output, jobs) or _left_behind(name, output)
        if name == "train" and run is not None:
            status = _trained(status, run, made)
        found.append(status)
    stages = _with_jobs(pipeline, found, jobs or ())
    return Look(stages=stages, run=run, time=time.time(), remark=remark)


def _run(directory: Path, jobs: Sequence[QueuedJob]) -> RunStatus | None:
    try:
        return status_of(directory, jobs) if directory.is_dir() else None
    except OSError:
        # What was there is being replaced; the next look sees it.
        return None


def _noted(name: Stage, output: Path, jobs: Sequence[QueuedJob] | None) -> StageStatus | None:
    """By the note of a stage that runs; None where there is none, or its process was killed."""
    note = read_standing(output)
    if note is None or not _lives(note, jobs):
        return None
    return StageStatus(
        stage=name,
        state="running",
        done=note.done if note.time is not None else None,
        total=note.total,
        unit=note.unit,
        seconds_left=note.seconds_left,
        why=f"process {note.pid} on {note.host}",
        number=note.job or "",
    )


def _lives(note: Standing, jobs: Sequence[QueuedJob] | None) -> bool:
    if note.host == os.uname().nodename:
        return started(note.pid) == note.began
    # Of a process on another node nothing else is known.
    return note.job is None or jobs is None or any(job.number == note.job for job in jobs)


def _left_behind(name: Stage, output: Path) -> StageStatus:
    """How a stage ended, where it ran at all."""
    if output.exists():
        return StageStatus(stage=name, state="done", ended=_changed(output))
    note, last = read_standing(output), last_time(output)
    if note is not None:
        why = f"process {note.pid} on {note.host} ended without a word"
        return StageStatus(stage=name, state="stopped", why=why, ended=note.time or note.started)
    if last is not None and not last["succeeded"]:
        began, seconds = last.get("started"), last.get("seconds")
        at = None
        if isinstance(began, float) and isinstance(seconds, float):
            at = began + seconds
        return StageStatus(stage=name, state="failed", why="its log says why", ended=at)
    return StageStatus(stage=name, state="waiting")


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _trained(status: StageStatus, run: RunStatus, made: StageKey) -> StageStatus:
    """The training, by its run: it knows more than the stage."""
    state, why = _OF_RUNS.get(run.state, status.state), run.where
    if status.state == "running" and run.state not in _ALIVE:
        # Its ranks do not write yet, or do not any more.
        state, why = "running" if run.state == "finished" else "starting", status.why
    target: int | None = made.extent.get("train_iters", run.target)
    if state == "done" and run.iteration < (target or 0):
        state, why = "waiting", f"goes on: train_iters is {target} now"
    return replace(
        status,
        state=state,
        done=run.iteration,
        total=target,
        unit="iterations",
        seconds_left=run.seconds_left,
        why=why,
        ended=None if state in _ALIVE else run.updated,
    )


def _with_jobs(
    pipeline: Pipeline, found: Sequence[StageStatus], jobs: Sequence[QueuedJob]
) -> list[StageStatus]:
    """Stages that wait for a job, or in one, say so; members of a group lie in one job."""
    scripts = [(job, DIRECTORY / f"{job.key}.{job.inputs}.jobscript.sh") for job in jobs]
    made = [(job, *made_by(script)) for job, script in scripts]
    said: dict[Stage, StageStatus] = {}
    group: QueuedJob | None = None
    for status in reversed(found):
        output = artifact(pipeline.stages[status.stage])
        job = next((job for job, outputs, _ in made if output in outputs), None)
        if job is not None:
            group = job if any(one is job and is_group for one, _, is_group in made) else None
        if status.state not in ("running", "done"):
            status = _in(status, job or group)
        said[status.stage] = status
    return [said[status.stage] for status in found]


def _in(status: StageStatus, job: QueuedJob | None) -> StageStatus:
    if job is None:
        return status
    state: State = "queued" if job.state == "PENDING" else "starting"
    why = f"{job} {job.where}".rstrip()
    return replace(status, state=state, why=why, ended=None, number=job.number)


def verdict(seen: Look) -> PrimusError | Literal["finished"] | None:
    """How it ended; None while it goes on, or has not begun.

    What has ended counts after `GRACE_SECONDS`: something may go on with it.
    """
    if seen.remark:
        return None
    stages = {status.stage: status for status in seen.stages}
    if all(status.state == "done" for status in seen.stages):
        return "finished"
    if any(status.alive for status in seen.stages):
        return None
    recent = max((status.ended or 0.0 for status in seen.stages), default=0.0)
    if seen.time - recent < GRACE_SECONDS:
        return None
    for status in seen.stages:
        if status.state in ("failed", "stopped", "preempted"):
            return _error(status, seen.run)
    return "finished" if stages["train"].state == "done" else None


def _error(status: StageStatus, run: RunStatus | None) -> PrimusError:
    text = f"{status.stage}: {status.state}" + (f": {status.why}" if status.why else "")
    if status.state == "preempted":
        return PreemptedError(text, advanced=True)
    if status.stage == "train" and run is not None and run.mendable:
        return UserError(text)
    return TrainingError(text)
