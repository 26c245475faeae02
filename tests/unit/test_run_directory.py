"""Whose a run directory is, its kernels and its attempts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from primus.artifacts.run import Attempt, RunIdentity, read_attempts
from primus.errors import RunConflictError
from primus.trainer import run_directory


def identity(**changes: Any) -> RunIdentity:
    values: dict[str, Any] = {
        "experiment": "e",
        "key": "0123456789ab",
        "settings": {"lr": 1e-3},
        "samples_fingerprint": "s",
        "tokenizer_fingerprint": "t",
        "tuned_sha256": None,
    }
    return RunIdentity(**(values | changes))


def attempt(number: int) -> Attempt:
    return Attempt(
        number=number,
        status="completed",
        reason="",
        started=0.0,
        finished=1.0,
        first_iteration=0,
        last_iteration=4,
        resumed_from=None,
        host="h",
        pid=1,
        world_size=1,
    )


def test_the_same_run_is_claimed_again(tmp_path: Path) -> None:
    run_directory.claim(tmp_path, identity())
    before = (tmp_path / run_directory.IDENTITY).read_bytes()
    run_directory.claim(tmp_path, identity())
    assert (tmp_path / run_directory.IDENTITY).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_fingerprint": "other"}, "samples_fingerprint = s, this one other"),
        ({"tokenizer_fingerprint": "other"}, "tokenizer_fingerprint = t, this one other"),
        ({"tuned_sha256": "abc"}, "tuned_sha256 = None, this one abc"),
        ({"settings": {"lr": 2e-3}}, "settings = {'lr': 0.001}, this one {'lr': 0.002}"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run_directory.claim(tmp_path, identity())
    before = (tmp_path / run_directory.IDENTITY).read_bytes()
    with pytest.raises(RunConflictError, match=re.escape(message)):
        run_directory.claim(tmp_path, identity(**changes))
    assert (tmp_path / run_directory.IDENTITY).read_bytes() == before


def test_the_first_tuned_result_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    tuned = tmp_path / "tuned.jsonl"
    tuned.write_text("first\n")
    own, sha256 = run_directory.adopt_tuned(directory, tuned)
    assert own == directory / run_directory.TUNED
    tuned.write_text("second\n")
    assert run_directory.adopt_tuned(directory, tuned) == (own, sha256)
    assert own.read_text() == "first\n"


def test_without_a_tuned_result_there_is_none(tmp_path: Path) -> None:
    assert run_directory.adopt_tuned(tmp_path, None) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_attempts_are_numbered_on(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == []
    first, second = (run_directory.new_attempt(tmp_path) for _ in range(2))
    assert (first.name, second.name) == ("001", "002")
    attempt(1).save(first / "attempt.json")
    (second / "attempt.json").write_text("{")
    assert [found.number for found in read_attempts(tmp_path)] == [1]
    first.rename(tmp_path / "attempts/041")
    assert run_directory.new_attempt(tmp_path).name == "042"
