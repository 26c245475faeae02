"""What the cluster says of jobs; asks squeue first, then sacct where accounting runs."""

from __future__ import annotations

import pwd
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from primus.slurm.job import PREFIX
from primus.slurm.states import ALIVE

_SECONDS = 60.0
# Of a job of a pipeline. Others may be arrays, such as 18_[1-3%2], or have parts, such as 18+0.
_NUMBER = r"[0-9]{1,18}(_[0-9]{1,18})?$"


class QueueError(Exception):
    """The cluster does not answer, or not in its own words; nothing is known of any job."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job of this user's pipelines that waits or runs.

    Attributes:
        state: SLURM's word for it. where: its nodes, or why it waits.
        key, inputs: of its comment, see `primus.slurm.job.Job`.
    """

    number: str
    state: str
    name: str
    where: str
    key: str
    inputs: str

    def __str__(self) -> str:
        return f"job {self.number} {self.state}"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How a job is.

    Attributes:
        state: SLURM's word for it, such as RUNNING or NODE_FAIL.
        reason: why it waits or how it ended, where SLURM says so.
        by: who cancelled it, where SLURM says so.
        limit, nodes, memory: what it was given, as SLURM writes it.
    """

    state: str
    reason: str = ""
    by: str = ""
    limit: str = ""
    nodes: str = ""
    memory: str = ""


def find(wanted: Callable[[QueuedJob], bool]) -> list[QueuedJob]:
    """Those of this user's jobs that wait or run and are `wanted`, the oldest first.

    Raises:
        QueueError: the cluster does not answer.
    """
    found = [job for job in mine() if wanted(job)]
    return sorted(found, key=lambda job: int(job.number.partition("_")[0]))


def mine(seconds: float = _SECONDS) -> list[QueuedJob]:
    """This user's jobs of pipelines that wait or run.

    Args:
        seconds: how long to wait for the answer.

    Raises:
        QueueError: the cluster does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%k|%R|%j"]
    found = []
    for line in ask(command, seconds).splitlines():
        number, state, comment, where, name = _fields(line, 5, "[0-9]")
        if comment.startswith(PREFIX) and not re.match(_NUMBER, number):
            raise _strange(line)
        if comment.startswith(PREFIX) and state not in ("COMPLETING", "COMPLETED"):
            key, _, inputs = comment.removeprefix(PREFIX).partition(":")
            found.append(
                QueuedJob(
                    number=number, state=state, name=name, where=where, key=key, inputs=inputs
                )
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a job stands among those that wait for the same partitions, as far as it is shown.

    Attributes:
        place: from 1, by priority. waiting: how many wait.
        start: when SLURM expects it to start, as SLURM writes it; empty where it does not say.
    """

    place: int
    waiting: int
    start: str


def place_of(number: str, seconds: float = _SECONDS) -> Place | None:
    """How far a job that waits has come; None where it does not wait any more.

    Raises:
        QueueError: the cluster does not answer.
    """
    own = ask(["squeue", "--noheader", f"--jobs={number}", "--format=%T|%P|%S"], seconds)
    fields = [_fields(line, 3, "[A-Z]") for line in own.splitlines()[:1]]
    if not fields or fields[0][0] != "PENDING":
        return None
    (_, partition, start) = fields[0]
    command = ["squeue", "--noheader", "--states=PENDING", f"--partition={partition}"]
    lines = ask([*command, "--sort=-p,i", "--format=%i"], seconds).split()
    if number not in lines:
        return None
    start = start if re.match("[0-9]{4}-", start) else ""
    return Place(place=lines.index(number) + 1, waiting=len(lines), start=start)


def state_of(job: str) -> JobState | None:
    """How a job is; None where neither the controller nor the accounting knows its end.

    Raises:
        QueueError: the cluster does not answer.
    """
    return _from_controller(job) or _from_accounting(job)


def _from_controller(job: str) -> JobState | None:
    words = "%T|%r|%l|%N|%m"
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={words}"]
    try:
        lines = ask(command).splitlines()
    except QueueError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return _state(lines[0]) if lines else None


def _from_accounting(job: str) -> JobState | None:
    words = "--format=State,Reason,Timelimit,NodeList,ReqMem"
    options = ["--allocations", "--noheader", "--parsable2", words]
    try:
        lines = ask(["sacct", f"--jobs={job}", *options]).splitlines()
    except QueueError as error:
        # Without accounting it says so; the job is then known to nobody.
        if "accounting storage is disabled" in str(error) or "not found" in str(error):
            return None
        raise
    found = _state(lines[-1]) if lines else None
    # The controller knows no such job: the accounts have not heard, or never will, of its end.
    return None if found is not None and found.state in ALIVE else found


def _state(line: str) -> JobState:
    text, reason, limit, nodes, memory = _fields(line, 5, r"[A-Z]{2}")
    # The accounting writes "CANCELLED by 0", and a plus where a word was cut.
    words = text.split()
    by = words[2] if words[1:2] == ["by"] and len(words) > 2 else ""
    return JobState(
        state=words[0].rstrip("+") if words else "UNKNOWN",
        reason="" if reason == "None" else reason,
        by=_user(by),
        limit=limit,
        nodes="" if nodes == "None assigned" else nodes,
        memory=memory,
    )


def _fields(line: str, number: int, first: str) -> list[str]:
    found = [field.strip() for field in line.split("|", number - 1)]
    if len(found) != number or not re.match(first, found[0]):
        raise _strange(line)
    return found


def _strange(line: str) -> QueueError:
    return QueueError(f"the cluster answers {line[:60]!r}, which is not understood")


def _user(number: str) -> str:
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (ValueError, KeyError):
        return number


def ask(command: Sequence[str], seconds: float = _SECONDS) -> str:
    """What a command of SLURM prints.

    Raises:
        QueueError: it fails, is not there, or does not answer within `seconds`.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, errors="replace"
        )
    except (FileNotFoundError, PermissionError) as error:
        raise QueueError(f"{command[0]}: not found") from error
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"{command[0]} has not answered for {seconds:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise QueueError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout
