"""What Ctrl-C does to jobs: nothing. Say which run on, how to come back, and how to stop them.

    python -m primus.slurm.cancel JOB...

Snakemake calls it for the jobs that it waits for, and ends it after two seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from primus.errors import run_main
from primus.slurm import queue

_SECONDS = 1.5


def main(argv: Sequence[str] | None = None) -> None:
    """Print the jobs, and what can be done about them."""
    parser = argparse.ArgumentParser(prog="python -m primus.slurm.cancel", description=__doc__)
    parser.add_argument("jobs", nargs="+", metavar="JOB")
    args = parser.parse_args(argv)
    print("\n".join(farewell(args.jobs)), file=sys.stderr, flush=True)


def farewell(jobs: Sequence[str]) -> list[str]:
    """What to tell somebody who leaves while `jobs` wait or run."""
    try:
        known = {job.number: job for job in queue.mine(_SECONDS)}
        rows = [_row(known[job]) for job in jobs if job in known]
        left = [job for job in jobs if job in known]
    except queue.QueueError as error:
        rows, left = [f"  {', '.join(jobs)} ({error})"], list(jobs)
    if not left:
        return ["no job is left in the queue"]
    return [
        "The jobs run on; one that waits will start:",
        *rows,
        "Come back: type the same command; it finds them. Stop them: scancel " + " ".join(left),
    ]


def _row(job: queue.QueuedJob) -> str:
    return f"  {job.number}  {job.name}  {job.state}  {job.where}"


if __name__ == "__main__":
    run_main(main)
