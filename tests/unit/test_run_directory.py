"""Whose a run directory is, and who writes to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from primus.artifacts.run import Attempt, RunIdentity
from primus.errors import RunConflictError
from primus.trainer import run_directory

HOLD = """
import sys, time
from pathlib import Path
from primus.trainer.run_directory import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


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


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that holds the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_living_owner_is_refused_and_named(tmp_path: Path, holder: Any) -> None:
    named = re.escape(f"process {holder.pid} on {os.uname().nodename}")
    with pytest.raises(RunConflictError, match=named), run_directory.sole_writer(tmp_path):
        pass
    with pytest.raises(RunConflictError, match=named):
        run_directory.check_free(tmp_path)
    assert (tmp_path / run_directory.LOCK).exists(), "the refused one took nothing away"


def test_a_killed_owner_is_taken_over(tmp_path: Path, holder: Any) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / run_directory.LOCK).exists()
    with run_directory.sole_writer(tmp_path):
        owner = json.loads((tmp_path / run_directory.LOCK).read_text())
        assert owner["pid"] == os.getpid()


def test_a_zombie_is_dead(tmp_path: Path, holder: Any) -> None:
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    run_directory.check_free(tmp_path)
    assert not (tmp_path / run_directory.LOCK).exists()


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    me = {"host": os.uname().nodename, "pid": os.getpid(), "started": 1.0}
    (tmp_path / run_directory.LOCK).write_text(json.dumps(me))
    with run_directory.sole_writer(tmp_path):
        pass


def test_an_owner_on_another_host_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / run_directory.LOCK
    lock.write_text(json.dumps({"host": "node-7", "pid": 42, "started": 1.0}))
    with (
        pytest.raises(RunConflictError, match=r"process 42 on node-7.*Fix:.*writer\.json"),
        run_directory.sole_writer(tmp_path),
    ):
        pass
    assert lock.exists()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"host": "h", "pid": "x"}'])
def test_a_torn_lock_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / run_directory.LOCK).write_text(text)
    with pytest.raises(RunConflictError, match="delete the file if no trainer runs"):
        run_directory.check_free(tmp_path)


def test_the_lock_goes_with_its_owner_even_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with run_directory.sole_writer(tmp_path / "new"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    run_directory.check_free(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


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
    assert run_directory.attempts(tmp_path) == []
    first, second = (run_directory.new_attempt(tmp_path) for _ in range(2))
    assert (first.name, second.name) == ("001", "002")
    attempt(1).save(first / "attempt.json")
    (second / "attempt.json").write_text("{")
    assert [found.number for found in run_directory.attempts(tmp_path)] == [1]
    first.rename(tmp_path / "attempts/041")
    assert run_directory.new_attempt(tmp_path).name == "042"
