"""A run of the trainer as a job on the cluster, its processes, and faults for them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from lab import wait

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from trainer_run import REPOSITORY, Bench, Run

__all__ = [
    "SETTINGS",
    "SLOW",
    "TWO",
    "Bench",
    "Job",
    "Run",
    "leftovers",
    "nothing_is_left_of",
    "ranks",
]

# For runs that are to be hurt: one rank on each of two nodes, and a moment between iterations for
# a fault to come.
SETTINGS: dict[str, Any] = {
    "train_iters": 40,
    "lr_decay_iters": 40,
    "save_interval": 4,
    "hang_timeout_minutes": 5.0,
    "lease_timeout_seconds": 6.0,
    "preflight": {"enabled": False},
    "slurm": {"warning_seconds": 5},
}
TWO = SETTINGS | {"nproc_per_node": 1, "nodes": 2}
SLOW = {"SLOW": "0.3"}

# Read by every Python of a job. Iterations that take a while let a test act between two of them.
_HOOK = """
import os, sys, time
if "primus.train_rank" in sys.orig_argv and "SLOW" in os.environ:
    from primus.ranks.progress import Reporter
    real = Reporter.say
    def slowly(self, phase, iteration=-1):
        real(self, phase, iteration)
        time.sleep(float(os.environ["SLOW"]) if phase == "iterate" else 0)
    Reporter.say = slowly
"""


class Job:
    """A run that is trained by a job.

    Args:
        environment: set for the job. program: Python to run in place of `-m primus.train`.
        resources: of Snakemake's job.
    """

    def __init__(
        self,
        run: Run,
        *,
        nodes: int,
        environment: dict[str, str] | None = None,
        program: str | None = None,
        **resources: Any,
    ) -> None:
        self.run = run
        properties = {
            "rule": "train",
            "wildcards": {"experiment": run.directory.name},
            "output": [str(run.directory / "train.json")],
            "threads": 2,
            "resources": {"nodes": nodes, "mem_mb": 4000, "runtime": 10, **resources},
        }
        hooks = run.bench.path / "hooks"
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(_HOOK)
        usual = {"PYTHONPATH": f"{hooks}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
        variables = usual | (environment or {})
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        command = run.command()
        if program is not None:
            command[1:3] = ["-c", program]
        script = run.bench.path / f"{run.directory.name}.sh"
        script.write_text(
            f"#!/bin/sh\n# properties = {json.dumps(properties)}\nexport {exports}\n"
            f"exec {shlex.join(command)}\n"
        )
        metrics = run.directory / "metrics.jsonl"
        self._before = metrics.stat().st_size if metrics.exists() else 0
        self.number = self._call("submit", str(script))

    def _call(self, module: str, argument: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"primus.slurm.{module}", argument],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.run.bench.path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self) -> str:
        """Snakemake's word for how it is."""
        return self._call("status", self.number)

    def runs(self) -> bool:
        """Whether it has not ended; a program is asked that costs less than Python's start."""
        if self._queued("%T") in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"):
            return True
        return self.status() == "running"

    def _queued(self, word: str) -> str:
        command = ["squeue", "-h", "-j", self.number, "-o", word]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def ends(self, word: str, seconds: float = 300.0) -> str:
        """Wait for its end, which must be `word`; what it printed."""
        wait(lambda: not self.runs(), f"job {self.number} does not end", seconds)
        assert self.status() == word, self.log()
        return self.log()

    def finish(self) -> Run:
        """Wait until the run is trained."""
        self.ends("success")
        return self.run

    def log(self) -> str:
        """What it has printed."""
        logs = (self.run.bench.path / "output" / "logs" / "slurm").glob(f"*.{self.number}.log")
        return "\n".join(path.read_text() for path in logs)

    def wait_for(self, iteration: int) -> None:
        """Until the run has logged `iteration` in this job, or one beyond it."""
        metrics = self.run.directory / "metrics.jsonl"

        def reached() -> bool:
            new = metrics.read_bytes()[self._before :] if metrics.exists() else b""
            if any(int(found) >= iteration for found in re.findall(rb'"iteration":(\d+),', new)):
                return True
            assert self.runs(), self.log()
            return False

        wait(reached, f"iteration {iteration} is not reached", seconds=240)

    def signal(self, name: str) -> None:
        """Have SLURM send a signal to all of its processes."""
        subprocess.run(["scancel", f"--signal={name}", self.number], check=True)

    def cancel(self) -> None:
        """End it."""
        subprocess.run(["scancel", self.number], check=True)

    def nodes(self) -> list[int]:
        """The numbers of the nodes that it runs on, the first one first."""
        command = ["scontrol", "show", "hostnames", self._queued("%N")]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return [int(name.removeprefix("node")) for name in names]


def ranks(run: Run) -> list[psutil.Process]:
    """The processes of a run's ranks, in their order."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name().startswith("rank") and str(run.directory) in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sorted(found, key=psutil.Process.name)


def leftovers() -> list[str]:
    """Command lines of processes of trainings that still run anywhere on the cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            dead = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if not dead and any(name in command for name in ("primus.train", "primus.agent")):
            found.append(command)
    return found


def nothing_is_left_of(run: Run) -> None:
    """Wait until no process of a run's trainings is left anywhere."""
    wait(
        lambda: not [line for line in leftovers() if str(run.directory) in line],
        f"{leftovers()}",
        seconds=30,
    )
