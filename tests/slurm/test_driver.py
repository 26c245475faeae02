"""Whole runs with `--profile slurm` on the real SLURM: left, killed, come back to, and disputed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab, wait

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from project import REPOSITORY, Project

from primus.artifacts.run import TrainManifest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

TARGET = "train_llama3_8B_tiny"


class Call:
    """Somebody's `snakemake --profile slurm` in a terminal."""

    def __init__(self, project: Path, *arguments: str) -> None:
        self.log = project / f"call.{len(list(project.glob('call.*')))}"
        quickly = ("--seconds-between-status-checks", "1")
        command = ["snakemake", "--profile", "slurm", *quickly, TARGET, *arguments]
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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("driver"))
    (made.path / "slurm").symlink_to("profiles/slurm")
    made.set({"train_iters": 200, "log_interval": 1, "save_interval": 100, "nproc_per_node": 2})
    return made


def queued() -> list[str]:
    """`number name state` of every job."""
    command = ["squeue", "-h", "-o", "%i %j %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def train_job() -> str:
    """The number of the one job that trains."""
    (line,) = [line for line in queued() if " train." in line]
    return line.split()[0]


def jobs_of(project: Project) -> list[str]:
    """Numbers of all jobs that have ended."""
    return sorted(path.stem for path in (project.path / ".snakemake/slurm").glob("*.end"))


def iterations(project: Project) -> int:
    return sum(
        path.read_text().count('"type":"train"')
        for path in project.path.glob("output/runs/*/*/metrics.jsonl")
    )


@pytest.mark.fault(
    21,
    22,
    injected="kill -9 of Snakemake while the training job runs, then Ctrl-C of the next one",
    observed="the dead owner's lock is removed and said; the job is taken over, none is "
    "submitted twice; every stage ends verified, and a further call does nothing",
)
def test_left_and_killed_it_goes_on_and_nothing_runs_twice(lab: Lab, project: Project) -> None:
    killed = Call(project.path)
    killed.until(lambda: iterations(project) > 1)
    number = train_job()
    killed.end(signal.SIGKILL)
    # It stands still until both are through, however fast it trains.
    subprocess.run(["scontrol", "suspend", number], check=True)

    left = Call(project.path)
    left.says(f"job {number} SUSPENDED is at it already")
    assert f"(process {killed.process.pid} on " in left.said()
    assert "its lock is removed" in left.said()
    left.says(f"with external jobid '{number}'")
    assert left.end(signal.SIGINT) != 0
    assert "The jobs run on" in left.said()
    assert f"scancel {number}" in left.said()
    assert train_job() == number

    subprocess.run(["scontrol", "resume", number], check=True)
    wait(lambda: not queued(), "the job does not end", seconds=400)
    back = Call(project.path)
    assert back.end() == 0, back.said()
    (manifest,) = project.path.glob("output/runs/*/*/train.json")
    found = TrainManifest.load(manifest)
    assert (found.iteration, found.attempts) == (200, 1)
    assert (manifest.parent / "report.html").exists()
    assert (manifest.parent / "hf/manifest.json").exists()
    assert len(jobs_of(project)) == 5, "text, shapes, tune, train, results"
    again = Call(project.path)
    assert (again.end(), "Nothing to be done" in again.said()) == (0, True)


@pytest.mark.fault(
    23,
    24,
    injected="a second Snakemake in the directory, and one in another that shares its output",
    observed="the first is refused by the lock and its owner named, the second by the run's "
    "lease, which names node, process and job",
)
def test_a_second_one_is_refused_and_the_first_one_named(
    lab: Lab, project: Project, tmp_path: Path
) -> None:
    longer = ("--config", "train_iters=100000")
    first = Call(project.path, *longer)
    first.until(lambda: iterations(project) > 201)
    number = train_job()

    second = Call(project.path, *longer)
    assert second.end() != 0
    assert f"(process {first.process.pid} on " in second.said()
    assert "Directory cannot be locked" in second.said()

    other = Call(project.path, "--config", "train_iters=200000", "--nolock")
    assert other.end() != 0
    assert f"job {number} RUNNING is at it with other settings" in other.said()

    elsewhere = Project(tmp_path)
    for name in ("slurm", "configs", "corpus", "output"):
        if (tmp_path / name).is_dir():
            (tmp_path / name).rename(tmp_path / f"{name}.own")
        target = "profiles/slurm" if name == "slurm" else project.path / name
        (tmp_path / name).symlink_to(target)
    third = Call(elsewhere.path, *longer)
    assert third.end() != 0
    assert f"(SLURM job {number}) is writing to this run" in third.said()

    subprocess.run(["scancel", number], check=True)
    assert first.end() != 0
    assert f"job {number} (train.llama3_8B_tiny) failed: CANCELLED" in first.said()
    assert "Fix: the same command goes on where it stopped" in first.said()
    assert not queued()
