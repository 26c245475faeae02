"""Whether a run has finished, by what is in its directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint_directory import KEY, flip_a_bit, write
from test_run_directory import attempt

from primus.artifacts.failure import Failure, RankEnd, RankStanding, Reason
from primus.artifacts.run import AttemptResult, read_attempts
from primus.config.frozen import StageSettings
from primus.errors import ArtifactError, OutOfMemoryError, TrainingError, UserError
from primus.trainer.outcome import finished, port_was_taken, read_metrics, require_completed


def settings(train_iters: int) -> StageSettings:
    values = {
        "train_iters": train_iters,
        "nodes": 2,
        "micro_batch_size": 4,
        "recompute_granularity": None,
        "use_distributed_optimizer": True,
        "use_torch_fsdp2": False,
        "tensor_model_parallel_size": 1,
    }
    return StageSettings.of("train", values, key=KEY)


def add_failure(run: Path, node: int, reason: Reason = "rank", **changes: Any) -> None:
    """What the agent of a node left of attempt 1."""
    logs = run / f"attempts/001/logs/node{node:03d}"
    record = Failure(node=node, host=f"n{node}", reason=reason, time=0.0, **changes)
    record.save(logs / "failure.json")


def end(rank: int, **changes: Any) -> RankEnd:
    usual = {
        "local_rank": 0,
        "status": None,
        "signal": "SIGSEGV",
        "time": 1.0,
        "out_of_memory": False,
        "follows": False,
        "iteration": 1200,
        "lines": ["Fatal Python error: Segmentation fault", "", "Extension modules: many"],
    }
    return RankEnd(rank=rank, **(usual | changes))


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


@pytest.mark.parametrize("size", [0, 20])
def test_a_torn_result_is_no_end(tmp_path: Path, size: int) -> None:
    """The next attempt writes another one; before, each start failed alike."""
    write(tmp_path / "checkpoints", 4)
    add_attempt(tmp_path, 1, 4)
    os.truncate(tmp_path / "attempts/001/result.json", size)
    assert not finished(tmp_path, settings(4))
    add_attempt(tmp_path, 2, 4)
    assert finished(tmp_path, settings(4))


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
        (
            {"status": "running"},
            -9,
            r"attempt 1 failed: rank 0 on \S+ was ended by SIGKILL after iteration 4 or later",
        ),
        (
            {"status": "running", "world_size": 2},
            -9,
            r"attempt 1 failed: the agent of its ranks on \S+ was ended by SIGKILL after",
        ),
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


def test_the_rank_that_failed_first_is_named(tmp_path: Path) -> None:
    add_attempt(tmp_path, 1, None, status="running")
    follows = end(0, status=1, signal=None, follows=True, time=0.5, lines=["lost"])
    add_failure(tmp_path, 0, ranks=[follows])
    add_failure(tmp_path, 1, ranks=[end(5)])
    wanted = (
        r"attempt 1 failed: rank 5 on n1 was ended by SIGSEGV after iteration 1200\. "
        r"Its last lines: Fatal Python error: Segmentation fault\. Logs: .*attempts/001/logs\. "
        r"The last checkpoint is kept; run the same command again"
    )
    with pytest.raises(TrainingError, match=wanted):
        require_completed(tmp_path, settings(4), 1)
    (kept,) = read_attempts(tmp_path)
    assert kept.status == "failed"
    assert "rank 5 on n1" in kept.reason


def test_a_rank_that_died_in_a_save_is_named_before_what_came_of_it(tmp_path: Path) -> None:
    add_attempt(tmp_path, 1, None, status="failed", reason="rank 0: iteration 4 was not saved")
    add_failure(tmp_path, 1, ranks=[end(5, signal="SIGKILL", lines=[])])
    wanted = (
        r"attempt 1 failed: rank 5 on n1 was ended by SIGKILL after iteration 1200; "
        r"rank 0: iteration 4 was not saved\. Logs: "
    )
    for _ in range(2):
        with pytest.raises(TrainingError, match=wanted):
            require_completed(tmp_path, settings(4), 1)
    (kept,) = read_attempts(tmp_path)
    assert kept.reason.startswith("rank 5 on n1 was ended by SIGKILL")


def test_a_failed_attempt_keeps_its_own_words_where_no_signal_ended_a_rank(tmp_path: Path) -> None:
    add_attempt(tmp_path, 1, None, status="failed", reason="the loss is not finite")
    add_failure(tmp_path, 0, ranks=[end(0, signal=None, status=1)])
    with pytest.raises(TrainingError, match=r"attempt 1 failed: the loss is not finite\. Logs"):
        require_completed(tmp_path, settings(4), 1)


def test_too_little_memory_says_what_to_change_and_not_to_try_again(tmp_path: Path) -> None:
    add_attempt(tmp_path, 1, None, status="running")
    add_failure(tmp_path, 1, ranks=[end(5, signal="SIGKILL", out_of_memory=True)])
    with pytest.raises(OutOfMemoryError) as caught:
        require_completed(tmp_path, settings(4), 1)
    said = str(caught.value)
    assert "rank 5 on n1 was ended by SIGKILL after iteration 1200, out of memory" in said
    assert "recompute_granularity: full" in said
    assert "micro_batch_size: 2" in said
    assert "tensor_model_parallel_size: 2" in said
    assert "run the same command again" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answered": False, "state": "stopped"},
            "hung: rank 2 on n1 did not get on after iteration 7, in the phase 'reduce', for 60 s: "
            "its process was stopped; the stacks of all: ",
        ),
        ({"step": 3}, "rank 2 on n1 .*: it was in read_batch"),
        ({}, "no rank got on, as seen from n0, and none of them stands out"),
    ],
)
def test_the_rank_that_hangs_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    add_attempt(tmp_path, 1, None, status="running")
    usual = {
        "local_rank": 0,
        "step": 4,
        "iteration": 7,
        "phase": "reduce",
        "silent_seconds": 60.0,
        "state": "running",
        "answered": True,
        "waits": True,
        "where": "read_batch (batches.py:3)",
    }
    add_failure(tmp_path, 0, "hang", standing=[RankStanding(rank=0, **usual)])
    add_failure(tmp_path, 1, "hang", standing=[RankStanding(rank=2, **(usual | changes))])
    with pytest.raises(TrainingError, match=message):
        require_completed(tmp_path, settings(4), 1)


def test_ports_that_were_taken(tmp_path: Path) -> None:
    (tmp_path / "attempts/001").mkdir(parents=True)
    add_failure(tmp_path, 0, "port")
    assert port_was_taken(tmp_path / "attempts/001/logs")
    assert not port_was_taken(tmp_path)
    with pytest.raises(TrainingError, match="attempt 1 did not start: the ports where its nodes"):
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
