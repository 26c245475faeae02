"""What `python -m primus.status` says of runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from primus import run_status, status
from primus.artifacts.run import Attempt, MetricsRow
from primus.run_status import RunStatus, other_jobs, status_of, statuses
from primus.slurm.job import key_of
from primus.slurm.queue import QueuedJob
from primus.status import table

KEY = "0123456789ab"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run that has no attempt yet."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "output" / "runs" / "mine" / KEY
    (directory / "attempts").mkdir(parents=True)
    return directory


def attempt(run: Path, number: int, **changes: Any) -> None:
    values: dict[str, Any] = {
        "number": number,
        "status": "running",
        "reason": "",
        "started": 100.0,
        "finished": None,
        "first_iteration": 0,
        "last_iteration": 0,
        "resumed_from": None,
        "host": "h",
        "pid": 1,
        "world_size": 2,
    }
    directory = run / "attempts" / f"{number:03d}"
    Attempt(**(values | changes)).save(directory / "attempt.json")
    (directory / "about.json").write_text(json.dumps({"settings": {"train_iters": 50}}))


def metrics(run: Path, *iterations: int) -> None:
    rows = [
        MetricsRow(
            attempt=1,
            iteration=iteration,
            consumed_samples=1,
            consumed_tokens=1,
            time=200.0 + iteration,
            loss=5.0 - iteration / 10,
            lr=1e-3,
            grad_norm=1.0,
            skipped_iterations=0,
            seconds_per_iteration=2.0,
            tokens_per_second=1000.0,
            tflops_per_second=1.0,
            peak_share=None,
        ).model_dump_json()
        for iteration in iterations
    ]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")


def lease(run: Path, **changes: Any) -> None:
    me = psutil.Process()
    owner = {"host": os.uname().nodename, "pid": me.pid, "started": me.create_time(), "job": None}
    (run / "writer.000001.json").write_text(json.dumps(owner | {"released": False} | changes))


def test_a_run_that_trains_has_a_rate_and_an_end(run: Path) -> None:
    attempt(run, 1)
    metrics(run, 5, 10)
    lease(run)
    found = status_of(run)
    assert (found.state, found.iteration, found.target, found.loss) == ("running", 10, 50, 4.0)
    assert (found.seconds_left, found.updated) == (80.0, 210.0)
    assert str(os.getpid()) in found.where


def test_a_torn_last_row_and_validation_rows_are_passed_over(run: Path) -> None:
    metrics(run, 5)
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"type": "valid", "attempt": 1}\n{"type": "train", "iter')
    assert status_of(run).iteration == 5


@pytest.mark.parametrize(
    ("changes", "state", "where"),
    [
        ({"status": "failed", "reason": "rank 1: SIGSEGV", "finished": 300.0}, "failed", "rank 1"),
        ({"status": "preempted", "reason": "saved", "finished": 300.0}, "preempted", "saved"),
        ({"status": "running"}, "stopped", "without a word"),
    ],
)
def test_how_the_last_attempt_ended(
    run: Path, changes: dict[str, Any], state: str, where: str
) -> None:
    attempt(run, 1, status="failed", reason="an older one", finished=150.0)
    attempt(run, 2, **changes)
    found = status_of(run)
    assert (found.state, found.attempts, found.seconds_left) == (state, 2, None)
    assert where in found.where


def test_a_writer_that_is_gone_does_not_run(run: Path) -> None:
    attempt(run, 1)
    lease(run, started=1.0)
    assert status_of(run).state == "stopped"


def test_a_writer_on_another_host_runs_while_its_heart_beats(run: Path) -> None:
    attempt(run, 1)
    lease(run, host="node-7", job="17")
    beat = run / "writer.000001.beat"
    beat.write_text("3")
    found = status_of(run)
    assert (found.state, found.where.endswith("on node-7 (SLURM job 17)")) == ("running", True)
    os.utime(beat, (time.time() - 3600,) * 2)
    assert status_of(run).state == "stopped"


def job(name: str, state: str, key: str, where: str = "node1") -> QueuedJob:
    return QueuedJob(number="17", state=state, name=name, where=where, key=key, inputs="-")


@pytest.mark.parametrize(("word", "state"), [("PENDING", "queued"), ("RUNNING", "starting")])
def test_a_job_in_the_queue_is_the_runs_own(run: Path, word: str, state: str) -> None:
    key = key_of("train", [f"output/runs/mine/{KEY}/train.json"])
    found = status_of(run, [job("text", "PENDING", "other"), job("train.mine", word, key)])
    assert (found.state, found.where) == (state, f"job 17 {word} node1")
    assert status_of(run, [job("text", "PENDING", "other")]).state == "new"


def test_jobs_that_train_no_run_are_shown_where_they_work_for_this_directory(run: Path) -> None:
    (run.parent.parent / "other").mkdir()
    train = job("train.mine", "RUNNING", key_of("train", [f"output/runs/mine/{KEY}/train.json"]))
    text, tune = job("text", "PENDING", "a"), job("tune.other", "RUNNING", "b")
    elsewhere = job("tune.mine", "RUNNING", "c")
    run_status.DIRECTORY.mkdir(parents=True)
    for key in ("a", "b", train.key):
        (run_status.DIRECTORY / f"{key}.-.sh").touch()
    assert other_jobs([], [train, text, tune, elsewhere]) == [text, tune]
    assert other_jobs(["mine"], [text, tune]) == [text]


def test_runs_of_one_experiment_newest_first(run: Path) -> None:
    other = run.parent.parent / "other" / KEY
    newer = run.parent / "ffffffffffff"
    for directory, iteration in ((run, 1), (newer, 2), (other, 3)):
        directory.mkdir(parents=True, exist_ok=True)
        metrics(directory, iteration)
    assert [found.iteration for found in statuses()] == [3, 2, 1]
    assert [found.iteration for found in statuses(["mine"])] == [2, 1]


def test_the_table_lines_up(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table([]) == ["no runs below output/runs"]
    attempt(run, 1)
    metrics(run, 10)
    lease(run)
    status.main([])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["run", "state", "iteration", "loss"]
    assert row.split()[:6] == [f"mine/{KEY}", "running", "10/50", "4.0000", "1,000", "0:01:20"]
    assert heading.index("state") == row.index("running")
    status.main(["--json", "mine"])
    assert RunStatus(**json.loads(capsys.readouterr().out)).iteration == 10
