"""Whatever becomes of Snakemake's jobs: checkpoints, tokens, metrics and timings stay."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from project import EXPERIMENT, REPOSITORY, Project

from primus.artifacts.run import Attempt, MetricsRow, TrainManifest
from primus.trainer.outcome import read_metrics

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]

TARGET = f"train_{EXPERIMENT}"


class Copy(Project):
    """A copy of the finished project, in which things may break."""

    def __init__(self, original: Project, path: Path) -> None:
        shutil.copytree(original.path, path)
        self.path = path
        shown = self.run("python", "-m", "primus.config", "show", EXPERIMENT, "--json")
        self.train_json: str = json.loads(shown.stdout)["paths"]["train"]

    @property
    def run_directory(self) -> Path:
        return (self.path / self.train_json).parent

    def metrics(self) -> bytes:
        return (self.run_directory / "metrics.jsonl").read_bytes()

    def rows(self) -> list[MetricsRow]:
        return [row for row in read_metrics(self.run_directory) if isinstance(row, MetricsRow)]

    def attempts(self) -> list[Attempt]:
        paths = sorted(self.run_directory.glob("attempts/*/attempt.json"))
        return [Attempt.load(path) for path in paths]

    def start(self) -> subprocess.Popen[bytes]:
        """Start Snakemake on the run; its output goes to a file, as it would to a terminal."""
        program = Path(sys.executable).with_name("snakemake")
        with open(self.path / "terminal.txt", "ab") as terminal:
            return subprocess.Popen(
                [str(program), "--cores", "2", self.train_json],
                cwd=self.path,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
                stdout=terminal,
                stderr=subprocess.STDOUT,
            )

    def terminal(self) -> str:
        return (self.path / "terminal.txt").read_text()

    def hold_at(self, iteration: int, snakemake: subprocess.Popen[bytes]) -> psutil.Process:
        """Stop the first rank soon after it logged `iteration`."""
        mark = f'"iteration":{iteration},'.encode()

        def reached() -> bool:
            assert snakemake.poll() is None, self.terminal()
            return mark in self.metrics()

        wait_until(reached)
        rank = psutil.Process(self.attempts()[-1].pid)
        rank.suspend()
        return rank

    def treasures(self) -> dict[str, str]:
        """SHA-256 of everything that cost time to make, by path."""
        output = self.path / "output"
        paths = [
            *output.glob("runs/*/*/checkpoints/iter_*/**/*"),
            *output.glob("data/**/*.bin"),
            *output.glob("data/**/*.idx"),
            *output.glob("gemm/store/**/*"),
        ]
        files = [path for path in paths if path.is_file()]
        for kind in ("checkpoints", "data", "store"):
            assert any(kind in path.parts for path in files), kind
        return {
            str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_kept(copy: Copy, treasures: dict[str, str], metrics: bytes) -> None:
    now = copy.treasures()
    assert {path: now.get(path) for path in treasures} == treasures
    assert copy.metrics().startswith(metrics), "metrics are only ever added to"


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Copy:
    copied = Copy(finished, tmp_path / "copy")
    # Of another machine: on a busy one the short search may have timed nothing.
    timing = copied.path / "output/gemm/store/0123456789abcdef/fedcba9876543210.json"
    timing.parent.mkdir(parents=True, exist_ok=True)
    timing.write_text("{}\n")
    return copied


def test_everything_declared_deleted_and_everything_forced(copy: Copy) -> None:
    treasures, metrics = copy.treasures(), copy.metrics()
    before = TrainManifest.load(copy.run_directory / "train.json")
    copy.make("--delete-all-output", TARGET)
    assert not (copy.run_directory / "train.json").exists()
    assert_kept(copy, treasures, metrics)
    copy.make("--forceall", TARGET)
    assert_kept(copy, treasures, metrics)
    assert copy.metrics() == metrics
    assert len(copy.attempts()) == 1, "the run had finished, and was not trained again"
    after = TrainManifest.load(copy.run_directory / "train.json")
    assert after.checkpoints == before.checkpoints


@pytest.mark.fault(
    1,
    23,
    injected="SIGKILL to the rank; a living owner's lease",
    observed="checkpoints and metrics are as they were, the owner is named, the rerun resumes",
)
def test_a_train_job_that_fails(copy: Copy) -> None:
    """A crash in the middle, then a job that cannot even start, then the way to the end."""
    treasures, metrics = copy.treasures(), copy.metrics()
    copy.set({"train_iters": 80})
    snakemake = copy.start()
    copy.hold_at(40, snakemake).kill()
    assert snakemake.wait() != 0
    assert_kept(copy, treasures, metrics)
    assert "run the same command again to go on from it" in copy.terminal()

    treasures, metrics = copy.treasures(), copy.metrics()
    me = psutil.Process()
    owner = {"host": os.uname().nodename, "pid": me.pid, "started": me.create_time()}
    lock = copy.run_directory / "writer.000900.json"
    lock.write_text(json.dumps(owner))
    refused = copy.start()
    assert refused.wait() != 0
    assert f"process {me.pid} on {os.uname().nodename} is writing to" in copy.terminal()
    assert (copy.treasures(), copy.metrics()) == (treasures, metrics)
    lock.unlink()

    copy.make(copy.train_json)
    assert_kept(copy, treasures, metrics)
    manifest = TrainManifest.load(copy.run_directory / "train.json")
    assert manifest.iteration == 80
    assert sorted({row.iteration for row in copy.rows()}) == list(range(2, 81, 2))
    assert copy.attempts()[-1].resumed_from is not None


@pytest.mark.fault(
    21,
    22,
    injected="SIGKILL to Snakemake, started again at once",
    observed="the dead owner is named, --unlock suggested; a second writer is refused, one writer "
    "wrote every row",
)
def test_snakemake_killed_while_the_trainer_lives_on(copy: Copy) -> None:
    """A second Snakemake must not bring a second writer to the run."""
    treasures, metrics = copy.treasures(), copy.metrics()
    copy.set({"train_iters": 80})
    snakemake = copy.start()
    rank = copy.hold_at(40, snakemake)
    snakemake.kill()
    snakemake.wait()
    assert rank.is_running()

    locked = copy.snakemake("--cores", "2", copy.train_json)
    assert locked.returncode != 0
    assert f"(process {snakemake.pid} on " in locked.stdout + locked.stderr
    assert "has ended without a word; what it started may run on" in locked.stdout + locked.stderr
    assert "type snakemake --unlock" in locked.stdout + locked.stderr
    assert copy.snakemake("--unlock", copy.train_json).returncode == 0
    refused = copy.snakemake("--cores", "2", copy.train_json)
    assert refused.returncode != 0
    assert f"process {rank.pid} on" in refused.stdout + refused.stderr
    assert rank.is_running()
    assert len(copy.attempts()) == 2, "the refused one started no attempt"
    assert_kept(copy, treasures, metrics)

    rank.send_signal(signal.SIGCONT)
    rank.wait(timeout=120)
    wait_until(lambda: (copy.run_directory / "train.json").exists())
    copy.make(copy.train_json)
    assert_kept(copy, treasures, metrics)
    assert [row.iteration for row in copy.rows()] == list(range(2, 81, 2)), "one writer"
    assert TrainManifest.load(copy.run_directory / "train.json").iteration == 80
