"""A tune stage that is killed in the middle loses only what it was busy with."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from replayed_stage import PROBLEMS, ReplayedStage

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]
WORKERS = 2


class Stage(ReplayedStage):
    """One that runs on this machine."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, workers=WORKERS)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(),
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, problems: int, stage: subprocess.Popen[str]) -> list[psutil.Process]:
        """Until so many problems are timed; the measuring processes that are busy then."""
        while len(self.timed()) < problems:
            assert stage.poll() is None, stage.communicate()
            time.sleep(0.01)
        workers = psutil.Process(stage.pid).children(recursive=True)
        assert len(workers) == WORKERS
        return workers

    def finish(self) -> str:
        stage = self.start()
        output, errors = stage.communicate(timeout=120)
        assert stage.returncode == 0, output + errors
        return output


def kill_all(stage: subprocess.Popen[str], workers: list[psutil.Process]) -> None:
    for process in (stage, *workers):
        process.kill()


def send(number: signal.Signals) -> Callable[[subprocess.Popen[str], list[psutil.Process]], None]:
    return lambda stage, workers: stage.send_signal(number)


INTERRUPTIONS = [
    (kill_all, -signal.SIGKILL),
    (send(signal.SIGKILL), -signal.SIGKILL),
    (send(signal.SIGTERM), -signal.SIGTERM),
    (send(signal.SIGINT), 130),
]


@pytest.mark.fault(
    28,
    injected="SIGKILL, SIGTERM and SIGINT while a store is filled",
    observed="nothing is measured twice, the result is byte for byte that of an undisturbed stage",
)
def test_an_interrupted_stage_resumes_and_times_nothing_twice(tmp_path) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Stage(tmp_path / "undisturbed")
    assert f"{PROBLEMS} measured now, 0 from the store" in undisturbed.finish()
    stage = Stage(tmp_path)
    seen: dict[str, tuple[bytes, int]] = {}
    for interrupt, status in INTERRUPTIONS:
        running = stage.start()
        workers = stage.wait_for(len(seen) + 1, running)
        interrupt(running, workers)
        _, errors = running.communicate(timeout=60)
        assert running.returncode == status, errors
        assert "Traceback" not in errors
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        assert not (tmp_path / "tuned.jsonl").exists()
        now = stage.timed()
        assert {name: now[name] for name in seen} == seen
        seen = now
    assert len(INTERRUPTIONS) <= len(seen) < PROBLEMS
    told = stage.finish()
    assert f"{PROBLEMS - len(seen)} measured now, {len(seen)} from the store" in told
    after = stage.timed()
    assert {name: after[name] for name in seen} == seen
    assert len(after) == PROBLEMS
    found = [path / "tuned.jsonl" for path in (stage.path, undisturbed.path)]
    assert found[0].read_bytes() == found[1].read_bytes()
