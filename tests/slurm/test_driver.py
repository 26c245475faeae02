"""Whole runs with `--profile slurm` on the real SLURM: left, killed, come back to, and disputed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from lab import Lab, wait
from snakemake_call import Call, Project, queued

from primus.artifacts.run import TrainManifest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

TARGET = "train_llama3_8B_tiny"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("driver"))
    (made.path / "slurm").symlink_to("profiles/slurm")
    made.set({"train_iters": 200, "log_interval": 1, "save_interval": 100, "nproc_per_node": 2})
    return made


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
    killed = Call(project.path, TARGET)
    killed.until(lambda: iterations(project) > 1)
    number = train_job()
    killed.end(signal.SIGKILL)
    # It stands still until both are through, however fast it trains.
    subprocess.run(["scontrol", "suspend", number], check=True)

    left = Call(project.path, TARGET)
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
    back = Call(project.path, TARGET)
    assert back.end() == 0, back.said()
    (manifest,) = project.path.glob("output/runs/*/*/train.json")
    found = TrainManifest.load(manifest)
    assert (found.iteration, found.attempts) == (200, 1)
    assert (manifest.parent / "report.html").exists()
    assert (manifest.parent / "hf/manifest.json").exists()
    assert len(jobs_of(project)) == 5, "text, shapes, tune, train, results"
    again = Call(project.path, TARGET)
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
    first = Call(project.path, TARGET, *longer)
    first.until(lambda: iterations(project) > 201)
    number = train_job()

    second = Call(project.path, TARGET, *longer)
    assert second.end() != 0
    assert f"(process {first.process.pid} on " in second.said()
    assert "Directory cannot be locked" in second.said()

    other = Call(project.path, TARGET, "--config", "train_iters=200000", "--nolock")
    assert other.end() != 0
    assert f"job {number} RUNNING is at it with other settings" in other.said()

    elsewhere = Project(tmp_path)
    for name in ("slurm", "configs", "corpus", "output"):
        if (tmp_path / name).is_dir():
            (tmp_path / name).rename(tmp_path / f"{name}.own")
        target = "profiles/slurm" if name == "slurm" else project.path / name
        (tmp_path / name).symlink_to(target)
    third = Call(elsewhere.path, TARGET, *longer)
    assert third.end() != 0
    assert f"(SLURM job {number}) is writing to this run" in third.said()

    subprocess.run(["scancel", number], check=True)
    assert first.end() != 0
    assert f"job {number} (train.llama3_8B_tiny) failed: CANCELLED" in first.said()
    assert "Fix: the same command goes on where it stopped" in first.said()
    assert not queued()
