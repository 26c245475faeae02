"""How every run is, at a glance.

python -m primus.status [--watch] [--json] [EXPERIMENT ...]

Reads output/runs and, where there is a SLURM, this user's jobs for this directory. Nothing is
written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from primus.artifacts.run import Attempt, MetricsRow, TrainManifest
from primus.config.load import experiments
from primus.config.paths import ARTIFACT
from primus.config.problems import did_you_mean, listed, show
from primus.errors import ArtifactError, RunConflictError, UserError, run_main
from primus.files import tail
from primus.slurm import queue
from primus.slurm.job import key_of
from primus.slurm.queue import QueuedJob
from primus.slurm.submit import DIRECTORY
from primus.trainer.lease import writer_of
from primus.trainer.run_directory import attempts

RUNS = Path("output") / "runs"
# Metrics rows are shorter; the last whole one lies in here.
_TAIL_BYTES = 1 << 14
_COLUMNS = ("run", "state", "iteration", "loss", "tokens/s", "ETA", "attempts", "updated", "where")


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


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m primus.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", nargs="*", help="only runs of these")
    parser.add_argument("--json", action="store_true", help="one JSON object per run or job")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=5.0, metavar="SECONDS", help="again and again"
    )
    args = parser.parse_args(argv)
    _require_known(args.experiment)
    while True:
        jobs = _jobs()
        found, others = statuses(args.experiment, jobs), other_jobs(args.experiment, jobs)
        text = "\n".join(
            [json.dumps(asdict(status)) for status in found]
            + [json.dumps(asdict(job)) for job in others]
            if args.json
            else [*table(found), *_lines(others)]
        )
        if args.watch is not None and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        print(text, flush=True)
        if args.watch is None:
            return
        time.sleep(args.watch)


def _require_known(names: Sequence[str]) -> None:
    """Raises a UserError for a name that is neither configured here nor has a run."""
    known = {*experiments(), *(path.name for path in RUNS.glob("*"))}
    for name in names:
        if name not in known:
            fix = did_you_mean(name, known) or f"known: {listed(known)}"
            raise UserError(f"configs: there is no experiment {show(name)}. Fix: {fix}")


def statuses(
    experiments: Sequence[str] = (), jobs: Sequence[QueuedJob] = (), root: Path = RUNS
) -> list[RunStatus]:
    """Every run below `root`, the newest first.

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
    tried = attempts(directory)
    last = tried[-1] if tried else None
    row = _last_row(directory / "metrics.jsonl")
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


def _last_row(path: Path) -> MetricsRow | None:
    """The last whole row of training; a torn one at the end is being written."""
    try:
        lines = tail(path, _TAIL_BYTES).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return MetricsRow.model_validate_json(line)
        except ValueError:
            continue
    return None


def _jobs() -> list[QueuedJob]:
    if shutil.which("squeue") is None:
        return []
    try:
        return queue.mine()
    except queue.QueueError as error:
        print(f"jobs are not shown: {error}", file=sys.stderr)
        return []


def _lines(jobs: Sequence[QueuedJob]) -> list[str]:
    return [f"{job}  {job.name}  {job.where}".rstrip() for job in jobs]


def table(found: Sequence[RunStatus]) -> list[str]:
    """Lines for people: a heading, and a row per run."""
    if not found:
        return ["no runs below output/runs"]
    rows = [_COLUMNS, *(_row(status) for status in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    return [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]
        ).rstrip()
        for row in rows
    ]


def _row(status: RunStatus) -> tuple[str, ...]:
    def plain(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    left = status.seconds_left
    return (
        f"{status.experiment}/{status.key}",
        status.state,
        f"{status.iteration}/{status.target if status.target is not None else '?'}",
        plain(status.loss, ".4f"),
        plain(status.tokens_per_second, ",.0f"),
        "-" if left is None else str(timedelta(seconds=round(left))),
        str(status.attempts),
        "-" if status.updated is None else _ago(time.time() - status.updated),
        status.where,
    )


def _ago(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{max(0.0, seconds):.0f} s ago"


if __name__ == "__main__":
    run_main(main)
