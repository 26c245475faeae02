"""Say how a job is, in Snakemake's three words: running, success or failed.

    python -m primus.slurm.status JOB

Success is said only of a job that ended with status 0. What the cluster does not answer, or in a
word that is not known here, counts as running; a job that nobody knows any more has failed after a
minute, unless it noted its own end. Why it failed goes to stderr, with the end of its log.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from primus.errors import run_main
from primus.slurm import queue
from primus.slurm.submit import DIRECTORY, LOGS

Verdict = Literal["running", "success", "failed"]

FAILED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("REVOKED", "TIMEOUT"),
    }
)
# A job in one of these goes on by itself, or SLURM has not finished with it.
ALIVE = frozenset(
    {
        *("COMPLETING", "CONFIGURING", "PENDING", "RESIZING", "REQUEUED", "RESV_DEL_HOLD"),
        *("RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED"),
    }
)
# Waits that nobody ends.
HELD = ("launch failed requeued held", "JobHoldMaxRequeue", "job requeued in held state")
GRACE_SECONDS = 60.0
_LINES = 15


def main(argv: Sequence[str] | None = None) -> None:
    """Print the word."""
    parser = argparse.ArgumentParser(prog="python -m primus.slurm.status", description=__doc__)
    parser.add_argument("job")
    args = parser.parse_args(argv)
    print(verdict(args.job), flush=True)


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
            return "success" if ended == 0 else _failed(job, f"ended with status {ended}")
        return _after_grace(job, "unknown to the cluster, and did not note its end")
    if found.state == "PREEMPTED":
        # SLURM starts it again, where it may.
        return _after_grace(job, "PREEMPTED and not started again")
    _forget_grace(job)
    if found.state == "COMPLETED":
        return "success" if ended in (0, None) else _failed(job, f"ended with status {ended}")
    if found.state in FAILED:
        return _failed(job, f"{found.state} ({found.reason})")
    if found.state == "PENDING" and any(held in found.reason for held in HELD):
        return _failed(job, f"held: {found.reason}; release it with scontrol release {job}")
    if found.state not in ALIVE:
        print(f"job {job}: state {found.state} is not known here; waiting", file=sys.stderr)
    return "running"


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
    print(f"job {job} failed: {why}", file=sys.stderr)
    for log in sorted(LOGS.glob(f"*.{job}.log")):
        print(f"last lines of {log}:", file=sys.stderr)
        for line in _tail(log):
            print(f"    {line}", file=sys.stderr)
    return "failed"


def _tail(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
    except OSError:
        return []


if __name__ == "__main__":
    run_main(main)
