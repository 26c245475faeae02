"""An agent that is killed leaves nothing: no rank that only starts, no directory for long."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from primus.ranks.parent import AGENT, agent_is_gone
from primus.ranks.scratch import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_directory_is_there_while_it_is_used(tmp_path: Path) -> None:
    with scratch() as mine:
        assert mine.parent == tmp_path
        with scratch() as other:
            assert mine.is_dir(), "that of an agent that lives is left alone"
            assert other != mine
        assert not other.exists()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_agent_left_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from primus.ranks.scratch import scratch\n"
        "with scratch() as path:\n"
        "    (path / 'progress').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False
    )
    (left,) = tmp_path.iterdir()
    (tmp_path / "primus-ranks-file").touch()
    with scratch():
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["primus-ranks-file"]


def test_a_directory_that_another_agent_takes_for_left_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock it looks as if its owner had been killed."""
    real, removed = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].rmdir()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch() as path:
        assert path.is_dir()
        assert [path] == list(tmp_path.iterdir()) != removed


def test_a_rank_knows_whether_its_agent_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AGENT, raising=False)
    assert not agent_is_gone()
    monkeypatch.setenv(AGENT, str(os.getppid()))
    assert not agent_is_gone()
    monkeypatch.setenv(AGENT, "1")
    assert agent_is_gone()


def test_a_rank_whose_agent_was_killed_while_it_started_ends_at_once(tmp_path: Path) -> None:
    """It would wait for files that nobody writes, and be nobody's."""
    words = ("--settings", "--samples", "--run-directory", "--about")
    command = [sys.executable, "-m", "primus.train_rank", "--attempt", "1"]
    for word in words:
        command += [word, str(tmp_path / "none.json")]
    done = subprocess.run(
        command,
        env=os.environ | {AGENT: str(os.getppid())},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "the agent of this rank has ended" in done.stderr
