"""Somebody's call of Snakemake with the SLURM profile, and the jobs that come of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import wait

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from project import REPOSITORY, Project

__all__ = ["Call", "Project", "SlurmJob", "cluster_project", "queued", "slurm_jobs"]


class Call:
    """Somebody's `snakemake --profile slurm` in a terminal.

    Args:
        arguments: after the profile: targets and options.
    """

    def __init__(self, project: Path, *arguments: str) -> None:
        self.log = project / f"call.{len(list(project.glob('call.*')))}"
        # Each question starts a Python for each job, on cores that the jobs are in need of.
        quickly = ("--seconds-between-status-checks", "2")
        command = ["snakemake", "--profile", "slurm", *quickly, *arguments]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                cwd=project,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text()

    def says(self, words: str, seconds: float = 300.0) -> None:
        """Wait until it has said `words`."""

        self.until(lambda: words in self.said(), seconds)

    def until(self, done: Callable[[], bool], seconds: float = 400.0) -> None:
        """Wait until `done()`, as long as it runs."""

        def ended_or_done() -> bool:
            return self.process.poll() is not None or done()

        wait(ended_or_done, self.said(), seconds)
        assert done(), self.said()

    def end(self, number: signal.Signals | None = None) -> int:
        """Its exit status, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"it does not end: {self.said()}")


def queued() -> list[str]:
    """`number name state` of every job."""
    command = ["squeue", "-h", "-o", "%i %j %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job as the controller knows it, also after its end."""

    number: str
    name: str
    state: str
    fields: dict[str, str]


def slurm_jobs(project: Project) -> list[SlurmJob]:
    """Every job that a project has submitted, the oldest first."""
    command = ["scontrol", "show", "job", "--oneliner"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = []
    for line in done.stdout.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if fields.get("WorkDir") == str(project.path):
            number, name, state = (fields[key] for key in ("JobId", "JobName", "JobState"))
            found.append(SlurmJob(number=number, name=name, state=state, fields=fields))
    return sorted(found, key=lambda job: int(job.number))


def cluster_project(path: Path) -> Project:
    """A project with the profile `slurm`, whose jobs ask for little."""
    made = Project(path)
    (made.path / "slurm").symlink_to("profiles/slurm")
    little = {"time": 10, "cpu_time": 5, "mem_mib": 2000, "cpu_mem_mib": 2000}
    made.set({"slurm": little, "gemm_tuning": {"budget_minutes": 0.01}})
    return made
