"""A job that SLURM starts again by itself: what its earlier turns are told to be, and its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run_directory import attempt

from primus.artifacts.run import read_attempts
from primus.config.frozen import StageSettings
from primus.errors import TrainingError
from primus.trainer import supervise
from primus.trainer.restarts import close_earlier, refuse_endless


def turns(directory: Path, parents: list[str | None], *, started: bool = True) -> None:
    """Attempts that began at these checkpoints."""
    for number, parent in enumerate(parents, start=1):
        path = directory / f"attempts/{number:03d}"
        path.mkdir(parents=True)
        (path / "about.json").write_text(json.dumps({"parent": parent}))
        if started:
            (path / "logs").mkdir()


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")


def test_turns_without_a_checkpoint_come_to_an_end(tmp_path: Path) -> None:
    turns(tmp_path, [None, None, None])
    wanted = r"SLURM has started job 17 3 times again without a new checkpoint in its last 3 turns"
    with pytest.raises(TrainingError, match=wanted):
        refuse_endless(tmp_path)


def test_a_job_that_is_submitted_anew_may_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns(tmp_path, [None] * 9)
    for restarts in ("", "0", "2"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        refuse_endless(tmp_path)
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    refuse_endless(tmp_path)


def test_a_new_checkpoint_and_ranks_that_never_started_do_not_count(tmp_path: Path) -> None:
    refuse_endless(tmp_path / "new")
    turns(tmp_path / "early", [None, None])
    refuse_endless(tmp_path / "early")
    turns(tmp_path / "advanced", ["iter_0000001", None, None, None])
    (tmp_path / "advanced/checkpoints/iter_0000002").mkdir(parents=True)
    (tmp_path / "advanced/checkpoints/iter_0000002/manifest.json").write_text("{}")
    refuse_endless(tmp_path / "advanced")
    turns(tmp_path / "preflight", [None, None, None, None], started=False)
    refuse_endless(tmp_path / "preflight")


def test_attempts_that_ended_without_a_word_are_closed(tmp_path: Path) -> None:
    for number, status, number_of_job in ((1, "running", "9"), (2, "preempted", "17")):
        record = attempt(number).model_copy(update={"status": status, "job": number_of_job})
        record.save(tmp_path / f"attempts/{number:03d}/attempt.json")
    for number in (3, 4):
        record = attempt(number).model_copy(update={"status": "running", "job": "17"})
        record.save(tmp_path / f"attempts/{number:03d}/attempt.json")
    close_earlier(tmp_path, record)
    found = read_attempts(tmp_path)
    assert [one.status for one in found] == ["failed", "preempted", "failed", "running"]
    assert found[0].reason.endswith("or its node was lost")
    assert found[2].reason.endswith("SLURM started job 17 again")


@pytest.mark.fault(
    16,
    injected="attempts whose longest save took 400 s",
    observed="ranks are told 1.5 times that earlier than slurm.warning_seconds",
)
def test_the_warning_comes_earlier_by_what_saves_took(tmp_path: Path) -> None:
    settings = StageSettings.of("train", {"slurm": {"warning_seconds": 300}})
    assert supervise._warning(settings, tmp_path) == 300
    for number, seconds in ((1, 400.0), (2, 90.0)):
        record = attempt(number).model_copy(update={"longest_save_seconds": seconds})
        record.save(tmp_path / f"attempts/{number:03d}/attempt.json")
    assert supervise._warning(settings, tmp_path) == 900
