"""Whether a run has finished, by what is in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_checkpoint_directory import KEY, flip_a_bit, write
from test_run_directory import attempt

from primus.artifacts.run import AttemptResult
from primus.config.frozen import StageSettings
from primus.errors import ArtifactError, TrainingError, UserError
from primus.trainer.outcome import finished, read_metrics, require_completed


def settings(train_iters: int) -> StageSettings:
    return StageSettings.of("train", {"train_iters": train_iters}, key=KEY)


def add_attempt(run: Path, number: int, result: int | None, **changes: Any) -> None:
    """An attempt's record, and the iteration of its result if it came so far."""
    directory = run / f"attempts/{number:03d}"
    attempt(number).model_copy(update=changes).save(directory / "attempt.json")
    if result is None:
        return
    AttemptResult(
        iteration=result,
        consumed_samples=result,
        consumed_tokens=result,
        parameters=1,
        flops_per_token=1.0,
        peak_tflops_per_device=None,
        seconds=1.0,
        device="d",
        platform="cpu",
        tuned=None,
    ).save(directory / "result.json")


def test_a_run_with_its_last_checkpoint_and_result_has_finished(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 4)
    add_attempt(tmp_path, 1, 4)
    assert finished(tmp_path, settings(4))
    assert finished(tmp_path, settings(3)), "it went further before"
    assert not finished(tmp_path, settings(5))


def test_killed_before_any_result(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints", 4)
    add_attempt(tmp_path, 1, None, status="running")
    assert not finished(tmp_path, settings(4))


def test_killed_between_the_last_checkpoint_and_the_result(tmp_path: Path) -> None:
    """The result there is that of an attempt before, which ended earlier."""
    write(tmp_path / "checkpoints", 2)
    add_attempt(tmp_path, 1, 2)
    write(tmp_path / "checkpoints", 4)
    add_attempt(tmp_path, 2, None, status="running")
    assert not finished(tmp_path, settings(4))


def test_a_damaged_last_checkpoint_is_no_end(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 4)
    add_attempt(tmp_path, 1, 4)
    flip_a_bit(path / "inner/0.distcp")
    assert not finished(tmp_path, settings(4))


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"status": "preempted", "reason": "stopped"}, 1, "attempt 1 preempted: stopped"),
        ({"status": "failed", "reason": "NaN"}, 1, "attempt 1 failed: NaN"),
        ({"status": "running"}, -9, "attempt 1 was ended by SIGKILL"),
        ({"status": "running"}, 1, "attempt 1 ended after iteration 4 or later"),
        ({"status": "completed"}, 0, "attempt 1 ended after iteration 4"),
    ],
)
def test_other_ends_are_named(
    tmp_path: Path, changes: dict[str, Any], status: int, message: str
) -> None:
    add_attempt(tmp_path, 1, None, **changes)
    with pytest.raises(TrainingError, match=message):
        require_completed(tmp_path, settings(4), status)


def test_an_attempt_that_left_no_record(tmp_path: Path) -> None:
    add_attempt(tmp_path, 1, 4)
    (tmp_path / "attempts/002").mkdir()
    with pytest.raises(TrainingError, match=r"attempt 2 did not start \(exit status 1\)"):
        require_completed(tmp_path, settings(4), 1)


def test_a_mistake_of_the_user_is_told_in_its_own_words(tmp_path: Path) -> None:
    add_attempt(tmp_path, 1, None, status="failed", reason="wrong stack", mendable=True)
    with pytest.raises(UserError, match=r"^wrong stack$"):
        require_completed(tmp_path, settings(4), 1)


def test_a_torn_last_row_is_left_out_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    row = (
        '{"type":"valid","attempt":1,"iteration":1,"time":1.0,"loss":2.0,"batches":1,'
        '"seconds":1.0}\n'
    )
    path = tmp_path / "metrics.jsonl"
    path.write_text(row + row[:30])
    assert [found.iteration for found in read_metrics(tmp_path)] == [1]
    path.write_text(row[:30] + "\n" + row)
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:1: damaged row"):
        read_metrics(tmp_path)
