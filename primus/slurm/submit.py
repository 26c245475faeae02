"""Submit one of Snakemake's job scripts, or find the job that already does its work.

    python -m primus.slurm.submit JOBSCRIPT

prints the job's number. A job for the same work that waits or runs, as after a login session that
was lost, is taken over instead of a second one. Each job notes its own end in a file, because a
cluster without accounting forgets it.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tenacity

from primus.errors import RunConflictError, UnavailableError, run_main
from primus.files import atomic_write
from primus.slurm import queue
from primus.slurm.job import ANY_INPUTS, Job, members_of

DIRECTORY = Path(".snakemake") / "slurm"
LOGS = Path("output") / "logs" / "slurm"
_PATIENCE_SECONDS = 600.0

_SCRIPT = """\
#!/bin/sh
# The job of {name}; written by primus.slurm.submit.
end={directory}/"$SLURM_JOB_ID".end
export PRIMUS_SLURM_JOB="$SLURM_JOB_ID"
export PRIMUS_SLURM_AGAIN={directory}/"$SLURM_JOB_ID".again
# When it came into the queue, the last time where it came several times, and when it left it.
PRIMUS_SLURM_QUEUE=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format='%V %S' 2>/dev/null)
export PRIMUS_SLURM_QUEUE
# A job that is started again has not ended yet.
rm -f "$end" "$PRIMUS_SLURM_AGAIN"
sh {jobscript}
status=$?
# Training that was told to stop because the time is over goes on in the job's next turn; so does
# one whose nodes are broken, without those that stand in the file.
[ ! -s "$PRIMUS_SLURM_AGAIN" ] || trap '' TERM
if [ -e "$PRIMUS_SLURM_AGAIN" ] && scontrol requeue "$SLURM_JOB_ID"; then
    if [ -s "$PRIMUS_SLURM_AGAIN" ]; then
        # A job's nodes can be changed only while it waits, and this one waits for this script.
        scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$(cat "$PRIMUS_SLURM_AGAIN")"
        exit "$status"
    fi
    # The controller ends this turn; what is noted now would be taken for the job's end.
    sleep 60
fi
if [ "$status" = 0 ]; then
    echo "$SLURM_JOB_ID" > {done}.tmp
    mv {done}.tmp {done}
fi
echo "$status" > "$end.tmp"
mv "$end.tmp" "$end"
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
    print(_submit(Job.read(args.jobscript), args.jobscript), flush=True)


def _keep_script(job: Job, jobscript: Path) -> Path:
    """Copies that stay when Snakemake, at its end, removes its own."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    directory = DIRECTORY.resolve()
    stem = f"{job.key}.{job.inputs}"
    inner, outer = directory / f"{stem}.jobscript.sh", directory / f"{stem}.sh"
    with atomic_write(inner) as stream:
        stream.write(lasting_text(job, jobscript, directory))
    with atomic_write(outer) as stream:
        stream.write(
            _SCRIPT.format(
                name=job.name,
                directory=shlex.quote(str(directory)),
                jobscript=shlex.quote(str(inner)),
                done=shlex.quote(str(directory / f"{stem}.done")),
            )
        )
    return outer


def lasting_text(job: Job, jobscript: Path, directory: Path) -> str:
    """The script's text, which waits for files that stay instead of Snakemake's temporary ones.

    A job that starts after Snakemake was left with Ctrl-C would wait for them in vain.
    """
    text = jobscript.read_text(encoding="utf-8")
    temporary = jobscript.parent
    if temporary.parent.name != ".snakemake":
        return text
    # Where there are many inputs, their names stand in a file.
    names = Path(f"{jobscript}.waitforfilesfile.txt")
    if names.exists():
        kept = directory / f"{job.key}.inputs.txt"
        with atomic_write(kept) as stream:
            waited = names.read_text(encoding="utf-8")
            stream.write(waited.replace(str(temporary), str(directory)))
        text = text.replace(str(names), str(kept))
    return text.replace(str(temporary), str(directory))


class _Unanswered(Exception):
    """SLURM could not be asked; the job may or may not have been taken."""


def _submit(job: Job, jobscript: Path) -> str:
    patient = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((_Unanswered, queue.QueueError)),
        stop=tenacity.stop_after_delay(_PATIENCE_SECONDS),
        wait=tenacity.wait_exponential(multiplier=2, max=60),
        reraise=True,
    )
    try:
        return patient(_submit_once, job, jobscript)
    except (_Unanswered, queue.QueueError) as error:
        raise UnavailableError(
            f"{job.name}: SLURM has not answered for {_PATIENCE_SECONDS:.0f} s: {error}. "
            "Fix: start again when it does; jobs that run are found"
        ) from error


def _submit_once(job: Job, jobscript: Path) -> str:
    # Asked before every try: one whose answer was lost may have been taken.
    at_it = _at_it(job)
    if at_it:
        return _take_over(job, at_it)
    ended = _just_ended(job)
    if ended is not None:
        return ended
    LOGS.mkdir(parents=True, exist_ok=True)
    options = job.options(LOGS / f"{job.name}.%j.log")
    command = ["sbatch", "--parsable", *options, str(_keep_script(job, jobscript))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return _first(job, done.stdout.strip().partition(";")[0])
    complaint = " ".join(done.stderr.split())
    if any(word in complaint.lower() for word in ("contact", "connection", "timed out")):
        raise _Unanswered(complaint)
    raise UnavailableError(
        f"{job.name}: sbatch refuses it: {complaint}. Fix: correct the resource with "
        f"--default-resources or --set-resources; the options were: {shlex.join(options)}"
    )


def _at_it(job: Job) -> list[queue.QueuedJob]:
    """Jobs that wait or run for the same work, or a part of it, the oldest first."""
    return queue.find(
        lambda found: found.key == job.key or not job.members.isdisjoint(_members_of(found))
    )


def _members_of(found: queue.QueuedJob) -> frozenset[str]:
    """What the job runs; nothing of one that another directory has submitted."""
    return members_of(DIRECTORY / f"{found.key}.{found.inputs}.jobscript.sh")


def _does_all(found: queue.QueuedJob, job: Job) -> bool:
    """Whether a queued group runs every member of `job`: what has ended is asked for no more."""
    theirs = _members_of(found)
    return not theirs or job.members <= theirs


def _take_over(job: Job, at_it: Sequence[queue.QueuedJob]) -> str:
    found = next((one for one in at_it if _does_all(one, job)), at_it[0])
    if found.inputs not in (job.inputs, ANY_INPUTS):
        complaint = "is at it with other settings"
    elif not _does_all(found, job):
        complaint = "is at a part of it"
    else:
        print(f"{job.name}: {found} is at it already", file=sys.stderr)
        return found.number
    raise RunConflictError(
        f"{job.name}: {found} {complaint}. Fix: wait for it, or stop it with "
        f"scancel {found.number}; then type the command again"
    )


def _just_ended(job: Job) -> str | None:
    """The job that has done this work since Snakemake looked at what was there; None without one.

    As after a Snakemake that was killed: the next one plans while the jobs of the last one end.
    """
    from primus import driver  # which few submissions need

    for note in DIRECTORY.glob("*.done"):
        members = members_of(note.with_suffix(".jobscript.sh"))
        group = note.stem.endswith(f".{ANY_INPUTS}") and job.members and job.members <= members
        if not group and note.stem != f"{job.key}.{job.inputs}":
            continue
        began = driver.began()
        if began is not None and note.stat().st_mtime >= began:
            number = note.read_text(encoding="ascii").strip()
            print(f"{job.name}: job {number} has just ended, and has done it", file=sys.stderr)
            return number
    return None


def _first(job: Job, mine: str) -> str:
    """The one of several jobs that Snakemakes beside each other submitted for the same work."""
    try:
        at_it = _at_it(job)
    except queue.QueueError:
        return mine
    if not at_it or at_it[0].number == mine:
        return mine
    subprocess.run(["scancel", mine], check=False, capture_output=True)
    return _take_over(job, at_it)


if __name__ == "__main__":
    # Ctrl-C is meant for Snakemake; this goes on to its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_main(main)
