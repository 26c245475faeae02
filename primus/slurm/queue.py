"""What the cluster says of jobs; asks squeue first, then sacct where accounting runs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_SECONDS = 60.0


class QueueError(Exception):
    """The cluster does not answer; nothing is known of any job."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How a job is.

    Attributes:
        state: SLURM's word for it, such as RUNNING or NODE_FAIL.
        reason: why it waits or how it ended, where SLURM says so.
    """

    state: str
    reason: str


def find(comment: str) -> str | None:
    """The number of a job of this user with that comment which waits or runs; None without one.

    Raises:
        QueueError: the cluster does not answer.
    """
    found = mine().get(comment)
    return found.partition(" ")[0] if found is not None else None


def mine() -> dict[str, str]:
    """`number STATE` of this user's jobs that wait or run, by comment.

    Raises:
        QueueError: the cluster does not answer.
    """
    lines = _run(["squeue", "--me", "--noheader", "--format=%i|%T|%k"]).splitlines()
    jobs = (line.split("|", 2) for line in lines)
    return {
        comment.strip(): f"{job} {state}"
        for job, state, comment in jobs
        if state not in ("COMPLETING", "COMPLETED")
    }


def state_of(job: str) -> JobState | None:
    """How a job is; None where neither the controller nor the accounting knows it.

    Raises:
        QueueError: the cluster does not answer.
    """
    return _from_controller(job) or _from_accounting(job)


def _from_controller(job: str) -> JobState | None:
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r"]
    try:
        lines = _run(command).splitlines()
    except QueueError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return _state(lines[0]) if lines else None


def _from_accounting(job: str) -> JobState | None:
    options = ["--allocations", "--noheader", "--parsable2", "--format=State,ExitCode"]
    try:
        lines = _run(["sacct", f"--jobs={job}", *options]).splitlines()
    except QueueError as error:
        # Without accounting it says so; the job is then known to nobody.
        if "accounting storage is disabled" in str(error) or "not found" in str(error):
            return None
        raise
    return _state(lines[-1]) if lines else None


def _state(line: str) -> JobState:
    # The accounting writes "CANCELLED by 0".
    state, _, reason = line.partition("|")
    words = state.split() or ["UNKNOWN"]
    return JobState(state=words[0].rstrip("+"), reason=reason.strip())


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except FileNotFoundError as error:
        raise QueueError(f"{command[0]}: not found") from error
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"{command[0]} has not answered for {_SECONDS:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise QueueError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout
