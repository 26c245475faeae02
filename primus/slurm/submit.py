"""Submit one of Snakemake's job scripts, or find the job that already does its work.

    python -m primus.slurm.submit JOBSCRIPT

prints the job's number. A job for the same work that waits or runs, as after a login session that
was lost, is taken over instead of a second one. Each job notes its own end in a file, because a
cluster without accounting forgets it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tenacity

from primus.errors import UnavailableError, run_main
from primus.files import atomic_write
from primus.slurm import queue
from primus.slurm.job import Job

DIRECTORY = Path(".snakemake") / "slurm"
LOGS = Path("output") / "logs" / "slurm"
_PATIENCE_SECONDS = 600.0

_SCRIPT = """\
#!/bin/sh
# The job of {name}; written by primus.slurm.submit.
note_end() {{
    echo "$1" > {directory}/"$SLURM_JOB_ID".tmp
    mv {directory}/"$SLURM_JOB_ID".tmp {directory}/"$SLURM_JOB_ID".end
}}
export PRIMUS_SLURM_JOB="$SLURM_JOB_ID"
export PRIMUS_SLURM_AGAIN={directory}/"$SLURM_JOB_ID".again
{warning}
# A job that is started again has not ended yet.
rm -f {directory}/"$SLURM_JOB_ID".end "$PRIMUS_SLURM_AGAIN"
sh {jobscript}
status=$?
# Training that was told to stop because the time is over goes on in the job's next turn.
if [ -e "$PRIMUS_SLURM_AGAIN" ] && scontrol requeue "$SLURM_JOB_ID"; then
    # The controller ends this turn; what is noted now would be taken for the job's end.
    sleep 60
fi
note_end "$status"
exit "$status"
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the number of the job.

    Raises:
        UserError: the job's resources contradict each other.
        UnavailableError: SLURM refuses the job, or does not answer for ten minutes.
    """
    parser = argparse.ArgumentParser(prog="python -m primus.slurm.submit", description=__doc__)
    parser.add_argument("jobscript", type=Path)
    args = parser.parse_args(argv)
    job = Job.read(args.jobscript)
    LOGS.mkdir(parents=True, exist_ok=True)
    options = job.options(LOGS / f"{job.name}.%j.log")
    script = _keep_script(job, args.jobscript)
    print(_submit(job, [*options, str(script)]), flush=True)


def _keep_script(job: Job, jobscript: Path) -> Path:
    """Copies that stay when Snakemake, at its end, removes its own."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    directory = DIRECTORY.resolve()
    inner, outer = directory / f"{job.key}.jobscript.sh", directory / f"{job.key}.sh"
    with atomic_write(inner) as stream:
        stream.write(jobscript.read_text(encoding="utf-8"))
    with atomic_write(outer) as stream:
        stream.write(
            _SCRIPT.format(
                name=job.name,
                directory=shlex.quote(str(directory)),
                jobscript=shlex.quote(str(inner)),
                warning=(
                    f"export PRIMUS_SLURM_WARNING={job.warning_seconds}"
                    if job.warning_seconds
                    else "unset PRIMUS_SLURM_WARNING"
                ),
            )
        )
    return outer


class _Unanswered(Exception):
    """SLURM could not be asked; the job may or may not have been taken."""


def _submit(job: Job, arguments: Sequence[str]) -> str:
    patient = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((_Unanswered, queue.QueueError)),
        stop=tenacity.stop_after_delay(_PATIENCE_SECONDS),
        wait=tenacity.wait_exponential(multiplier=2, max=60),
        reraise=True,
    )
    try:
        return patient(_submit_once, job, arguments)
    except (_Unanswered, queue.QueueError) as error:
        raise UnavailableError(
            f"{job.name}: SLURM has not answered for {_PATIENCE_SECONDS:.0f} s: {error}. "
            "Fix: start again when it does; jobs that run are found"
        ) from error


def _submit_once(job: Job, arguments: Sequence[str]) -> str:
    # Asked before every try: one whose answer was lost may have been taken.
    found = queue.find(job.comment)
    if found is not None:
        print(f"{job.name}: job {found} is at it already", file=sys.stderr)
        return found
    done = subprocess.run(
        ["sbatch", "--parsable", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]
    complaint = " ".join(done.stderr.split())
    if any(word in complaint.lower() for word in ("contact", "connection", "timed out")):
        raise _Unanswered(complaint)
    raise UnavailableError(
        f"{job.name}: sbatch refuses it: {complaint}. Fix: correct the resource with "
        f"--default-resources or --set-resources; the options were: {shlex.join(arguments[:-1])}"
    )


if __name__ == "__main__":
    run_main(main)
