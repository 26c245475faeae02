"""One process at a time writes to a run's directory, on whatever node."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from primus.errors import RunConflictError
from primus.trainer import lease as module
from primus.trainer.lease import check_free, lease

HOLD = """
import sys, time
from pathlib import Path
from primus.trainer.lease import lease
with lease(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.6)


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


def owners(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("writer.*.json"))


def publish(directory: Path, generation: int, **values: Any) -> Path:
    """The lease of somebody else."""
    content = {"host": "node-7", "pid": 42, "started": 1.0, "job": "17", "released": False}
    path = directory / f"writer.{generation:06d}.json"
    path.write_text(json.dumps(content | values))
    return path


@pytest.mark.fault(
    23,
    24,
    injected="a living process holds the lease in the run's directory",
    observed="refused, process and node are named",
)
def test_a_living_owner_is_refused_and_named(tmp_path: Path, holder: Any) -> None:
    named = re.escape(f"process {holder.pid} on {os.uname().nodename}")
    with pytest.raises(RunConflictError, match=named), lease(tmp_path):
        pass
    with pytest.raises(RunConflictError, match=named):
        check_free(tmp_path)
    assert owners(tmp_path) == ["writer.000001.json"], "the refused one took nothing away"


@pytest.mark.fault(
    22,
    injected="SIGKILL to the owner",
    observed="the lease is taken over",
)
def test_a_killed_owner_is_taken_over(tmp_path: Path, holder: Any) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lease(tmp_path):
        assert owners(tmp_path) == ["writer.000002.json"]
        assert json.loads((tmp_path / "writer.000002.json").read_text())["pid"] == os.getpid()


def test_a_zombie_is_dead(tmp_path: Path, holder: Any) -> None:
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    check_free(tmp_path)
    with lease(tmp_path):
        pass


def test_a_reused_process_number_is_not_the_owner(tmp_path: Path) -> None:
    publish(tmp_path, 1, host=os.uname().nodename, pid=os.getpid())
    with lease(tmp_path):
        pass


def test_who_has_let_go_is_followed_at_once(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        with lease(tmp_path):
            assert owners(tmp_path) == [f"writer.{generation:06d}.json"]
    assert json.loads((tmp_path / "writer.000003.json").read_text())["released"] is True
    publish(tmp_path, 4, released=True)
    with lease(tmp_path):
        pass


def test_the_lease_is_let_go_after_an_error_too(tmp_path: Path) -> None:
    def fail() -> None:
        with lease(tmp_path / "new"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with lease(tmp_path / "new"):
        pass


def test_an_owner_on_another_host_that_shows_life_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.05):
            count += 1
            (tmp_path / "writer.000001.beat").write_text(str(count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(RunConflictError, match=r"process 42 on node-7 \(SLURM job 17\)"),
            lease(tmp_path),
        ):
            pass
    finally:
        ended.set()
        thread.join()


def test_an_owner_on_another_host_that_stands_still_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 1)
    (tmp_path / "writer.000001.beat").write_text("7")
    with lease(tmp_path):
        assert owners(tmp_path) == ["writer.000002.json"]
    assert "process 42 on node-7 (SLURM job 17) is gone" in capsys.readouterr().out


@pytest.mark.fault(
    17,
    injected="an owner cut off, its run taken over",
    observed="it writes nothing more",
)
def test_an_owner_that_was_taken_for_dead_writes_nothing_more(tmp_path: Path) -> None:
    with lease(tmp_path) as held:
        held.check()
        held.check_quickly()
        publish(tmp_path, 2)
        with pytest.raises(RunConflictError, match=r"taken over by process 42 on node-7"):
            held.check()
        time.sleep(0.5)
        with pytest.raises(RunConflictError, match="taken over"):
            held.check_quickly()
    assert json.loads((tmp_path / "writer.000002.json").read_text())["released"] is False


def test_a_late_starter_does_not_go_back_behind_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw generation 1 end; meanwhile 2 came and went, and 3 writes."""
    publish(tmp_path, 1, released=True)
    real, late = module._wait_until_gone, []

    def sleepy(directory: Path, generation: int, patience: float) -> None:
        if not late:
            late.append(generation)
            (tmp_path / "writer.000001.json").unlink()
            publish(tmp_path, 3, host=os.uname().nodename, pid=os.getppid())
            monkeypatch.setattr(module, "_lives_here", lambda owner: owner.pid == os.getppid())
            return
        real(directory, generation, patience)

    monkeypatch.setattr(module, "_wait_until_gone", sleepy)
    with pytest.raises(RunConflictError, match=f"process {os.getppid()}"), lease(tmp_path):
        pass
    assert owners(tmp_path) == ["writer.000003.json"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"host": "h", "pid": "x"}'])
def test_a_torn_lease_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "writer.000001.json").write_text(text)
    with pytest.raises(RunConflictError, match="delete the file if no trainer runs"):
        check_free(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_an_owner_whose_lease_is_torn_lets_go_all_the_same(tmp_path: Path, text: str) -> None:
    with lease(tmp_path):
        (tmp_path / "writer.000001.json").write_text(text)
    assert json.loads((tmp_path / "writer.000001.json").read_text())["released"] is True
    with lease(tmp_path):
        assert owners(tmp_path) == ["writer.000002.json"]


def test_a_full_disk_does_not_hide_why_the_owner_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail() -> None:
        with lease(tmp_path):
            monkeypatch.setattr(module, "atomic_write", full)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


RACE = """
import sys, time
from pathlib import Path
from primus.errors import RunConflictError
from primus.trainer.lease import lease
directory = Path(sys.argv[1])
while not (directory / "go").exists():
    pass
try:
    with lease(directory):
        with open(directory / "owners", "a") as stream:
            stream.write("in\\n")
        while not (directory / "stop").exists():
            time.sleep(0.01)
except RunConflictError:
    pass
"""


def test_of_many_starters_one_takes_over_a_dead_owner(tmp_path: Path) -> None:
    publish(tmp_path, 5, host=os.uname().nodename, pid=2**22)
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
    assert left == ["go", "owners", "stop", "writer.000006.json"]


def test_an_owner_is_watched_for_as_long_as_it_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, 1, patience=1.4)
    with lease(tmp_path, 0.2):
        pass
    assert "Watching it for 1 s" in capsys.readouterr().out
    publish(tmp_path, 3, patience=0.2)
    with lease(tmp_path, 1.7):
        pass
    assert "Watching it for 2 s" in capsys.readouterr().out
