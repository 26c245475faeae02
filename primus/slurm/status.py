"""Say how a job is, in Snakemake's three words: running, success or failed.

    python -m primus.slurm.status JOB

Success is said only of a job that ended with status 0. What the cluster does not answer, or in a
word that is not known here, counts as running; a job that nobody knows any more has failed after a
minute, unless it noted its own end. Why it failed goes to stderr, with the end of its log.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from primus.errors import run_main
from primus.files import tail
from primus.slurm import queue, states
from primus.slurm.submit import DIRECTORY, LOGS

Verdict = Literal["running", "success", "failed"]

GRACE_SECONDS = 60.0
_LINES = 15
# Snakemake's own lines, which follow the last words of the stage in the log of its job.
_SNAKEMAKE = re.compile(r"^(Error in (rule|group)|RuleException|WorkflowError|Shutting down, this)")
_TIME = re.compile(r"\[.*\]")
_TAIL_BYTES = 1 << 16


def main(argv: Sequence[str] | None = None) -> None:
    """Print the word."""
    parser = argparse.ArgumentParser(prog="python -m primus.slurm.status", description=__doc__)
    parser.add_argument("job")
    args = parser.parse_args(argv)
    try:
        word = verdict(args.job)
    except OSError as error:
        # A full disk, say. Snakemake would end over it, and leave every job alone.
        print(f"job {args.job}: {error}; asked again later", file=sys.stderr)
        word = "running"
    print(word, flush=True)


def verdict(job: str) -> Verdict:
    """Snakemake's word for how a job is."""
    try:
        found = queue.state_of(job)
    except queue.QueueError as error:
        print(f"job {job}: {error}; asked again later", file=sys.stderr)
        return "running"
    ended = _noted_end(job)
    if found is None:
        if ended is not None:
            return "success" if ended == 0 else _failed(job, f"it ended with status {ended}")
        return _after_grace(job, "unknown to the cluster, and did not note its end")
    if found.state == "PREEMPTED":
        # SLURM starts it again, where it may.
        return _after_grace(job, "PREEMPTED and not started again")
    _forget_grace(job)
    if found.state == "COMPLETED":
        return "success" if ended in (0, None) else _failed(job, f"it ended with status {ended}")
    if found.state in states.FAILED:
        return _failed(job, _why(job, found))
    if found.state == "PENDING" and any(held in found.reason for held in states.HELD):
        return _failed(job, f"held: {found.reason}; release it with scontrol release {job}")
    if found.state == "PENDING" and found.reason in states.NEVER:
        fix = f"scancel {job}, lower slurm.time or nodes, or name another partition"
        return _failed(job, f"it would wait for ever: {found.reason}. Fix: {fix}")
    if found.state not in states.ALIVE:
        print(f"job {job}: state {found.state} is not known here; waiting", file=sys.stderr)
    return "running"


def _why(job: str, found: queue.JobState) -> str:
    return states.why(
        found.state,
        name=_name(job),
        reason=found.reason,
        by=found.by,
        limit=found.limit,
        nodes=found.nodes,
        memory=found.memory,
    )


def _noted_end(job: str) -> int | None:
    try:
        return int((DIRECTORY / f"{job}.end").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _after_grace(job: str, why: str) -> Verdict:
    """`running` for a minute from the first time, so that a slow controller costs no job."""
    mark = DIRECTORY / f"{job}.unknown"
    try:
        since = float(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(time.time()), encoding="utf-8")
        return "running"
    return _failed(job, why) if time.time() - since >= GRACE_SECONDS else "running"


def _forget_grace(job: str) -> None:
    (DIRECTORY / f"{job}.unknown").unlink(missing_ok=True)


def _failed(job: str, why: str) -> Verdict:
    name = _name(job)
    said = [f"job {job}{f' ({name})' if name else ''} failed: {why}"]
    for log in _logs(job):
        lines = _tail(log)
        # What a stage says last of all is the cause in one line.
        said += [f"    {line}" for line in dict.fromkeys(_errors(lines))]
        last = _of_the_stage(lines)[-_LINES:]
        said += [f"  last lines of its log, {log}:" if last else f"  its log: {log}"]
        said += [f"    {line}" for line in last]
    print("\n".join(said), file=sys.stderr)
    return "failed"


def _name(job: str) -> str:
    return next((log.name.removesuffix(f".{job}.log") for log in _logs(job)), "")


def _logs(job: str) -> list[Path]:
    return sorted(LOGS.glob(f"*.{job}.log"))


def _errors(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("error: ")][-3:]


def _of_the_stage(lines: Sequence[str]) -> Sequence[str]:
    """Without what the Snakemake inside the job adds about a failure."""
    for number, line in enumerate(lines):
        if _SNAKEMAKE.match(line):
            end = number - 1 if number and _TIME.fullmatch(lines[number - 1]) else number
            return lines[:end]
    return lines


def _tail(path: Path) -> list[str]:
    try:
        return tail(path, _TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    # Ctrl-C is meant for Snakemake; this goes on to its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_main(main)
