"""Who works in a directory, and whose lock may go."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from primus import driver

RUN = ["--profile", "slurm", "train_x"]


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock that a Snakemake has left."""
    monkeypatch.chdir(tmp_path)
    driver.LOCKS.mkdir(parents=True)
    lock = driver.LOCKS / "0.output.lock"
    lock.write_text("train.json\n")
    return lock


def note(**changes: Any) -> None:
    me = psutil.Process()
    one = {"user": "mary", "host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
    one |= {"cluster": True}
    driver.NOTES.mkdir(parents=True, exist_ok=True)
    path = driver.NOTES / f"{len(list(driver.NOTES.glob('*')))}.json"
    path.write_text(json.dumps(one | changes))


def test_the_lock_of_one_that_was_killed_is_removed(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(started=1.0)
    driver.arrive(["-n", *RUN])
    assert locked.exists(), "a dry run changes nothing"
    driver.arrive(RUN)
    assert not locked.exists()
    said = capsys.readouterr().err
    assert f"Snakemake of mary (process {os.getpid()} on {socket.gethostname()}" in said
    assert "its lock is removed" in said
    driver.arrive(RUN)
    assert capsys.readouterr().err == ""


def test_where_jobs_run_here_a_person_decides(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(started=1.0, cluster=False)
    driver.arrive(RUN)
    assert locked.exists()
    said = capsys.readouterr().err
    assert "has ended without a word; what it started may run on" in said
    assert "type snakemake --unlock" in said
    locked.unlink()
    driver.LOCKS.rmdir()
    driver.arrive(RUN)
    assert not list(driver.NOTES.iterdir()), "somebody has unlocked"
    assert capsys.readouterr().err == ""


def test_one_that_lives_is_named_and_keeps_its_lock(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note()
    note(started=1.0)
    driver.arrive(RUN)
    assert locked.exists()
    said = capsys.readouterr().err
    assert "process" in said
    assert "wait for it or end it there" in said


def test_of_one_on_another_host_nothing_is_certain(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(host="login7")
    driver.arrive(RUN)
    assert locked.exists()
    assert "if it was killed there, type snakemake --unlock" in capsys.readouterr().err


def test_a_lock_without_a_note_is_left_to_snakemake(locked: Path) -> None:
    driver.arrive(RUN)
    assert locked.exists()


def test_a_note_stands_from_the_first_job_to_the_last(locked: Path) -> None:
    driver.hold(RUN)
    (path,) = driver.NOTES.glob("*.json")
    content = json.loads(path.read_text())
    assert (content["pid"], content["cluster"]) == (os.getpid(), True)
    driver.leave()
    assert not path.exists()


def test_a_process_knows_when_the_snakemake_above_it_began(locked: Path) -> None:
    assert driver.began() is None
    mine = psutil.Process().parent()
    assert mine is not None
    driver.NOTES.mkdir(parents=True)
    (driver.NOTES / f"{socket.gethostname()}.{mine.pid}.json").touch()
    assert driver.began() == mine.create_time()
