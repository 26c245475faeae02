"""One process at a time writes to a run's directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from primus.errors import RunConflictError
from primus.trainer.sole_writer import LOCK, check_free, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from primus.trainer.sole_writer import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


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
    with pytest.raises(RunConflictError, match=named), sole_writer(tmp_path):
        pass
    with pytest.raises(RunConflictError, match=named):
        check_free(tmp_path)
    assert (tmp_path / LOCK).exists(), "the refused one took nothing away"


def test_a_killed_owner_is_taken_over(tmp_path: Path, holder: Any) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with sole_writer(tmp_path):
        owner = json.loads((tmp_path / LOCK).read_text())
        assert owner["pid"] == os.getpid()


def test_a_zombie_is_dead(tmp_path: Path, holder: Any) -> None:
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    check_free(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    me = {"host": os.uname().nodename, "pid": os.getpid(), "started": 1.0}
    (tmp_path / LOCK).write_text(json.dumps(me))
    with sole_writer(tmp_path):
        pass


def test_an_owner_on_another_host_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "node-7", "pid": 42, "started": 1.0}))
    with (
        pytest.raises(RunConflictError, match=r"process 42 on node-7.*Fix:.*writer\.json"),
        sole_writer(tmp_path),
    ):
        pass
    assert lock.exists()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"host": "h", "pid": "x"}'])
def test_a_torn_lock_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(RunConflictError, match="delete the file if no trainer runs"):
        check_free(tmp_path)


def test_the_lock_goes_with_its_owner_even_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with sole_writer(tmp_path / "new"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    check_free(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


RACE = """
import sys, time
from pathlib import Path
from primus.errors import RunConflictError
from primus.trainer.sole_writer import sole_writer
directory = Path(sys.argv[1])
while not (directory / "go").exists():
    pass
try:
    with sole_writer(directory):
        with open(directory / "owners", "a") as stream:
            stream.write("in\\n")
        while not (directory / "stop").exists():
            time.sleep(0.01)
except RunConflictError:
    pass
"""


def test_of_many_starters_one_takes_over_a_dead_owner(tmp_path: Path) -> None:
    dead = {"host": os.uname().nodename, "pid": 2**22, "started": 1.0}
    (tmp_path / LOCK).write_text(json.dumps(dead))
    starters = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)]) for _ in range(4)]
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 60
    while sum(starter.poll() is None for starter in starters) > 1:
        assert time.monotonic() < deadline, "more than one holds the run"
        time.sleep(0.05)
    (tmp_path / "stop").touch()
    assert [starter.wait(timeout=60) for starter in starters] == [0] * 4
    assert (tmp_path / "owners").read_text() == "in\n"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["go", "owners", "stop"], "no lock is left behind"
