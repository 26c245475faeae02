"""Ctrl-C in the terminal of Snakemake: the training saves, says so, and goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import EXPERIMENT, REPOSITORY, Project

from primus.artifacts.run import read_attempts

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

TARGET = f"train_{EXPERIMENT}"


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """Snakemake and all that it starts as one group, as a terminal's foreground job is."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("snakemake")), "--cores", "2", *arguments],
        cwd=project.path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_it_is_said_where_the_run_stopped_and_how_it_goes_on(project: Project) -> None:
    before = set(project.path.glob(f"output/runs/{EXPERIMENT}/*"))
    keys = ("--config", "lr=1e-3", "train_iters=100000", "lr_decay_iters=100000")
    process = start(project, TARGET, *keys)
    deadline = time.monotonic() + 300
    rows: list[Path] = []
    while not rows or rows[0].stat().st_size == 0:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
        new = set(project.path.glob(f"output/runs/{EXPERIMENT}/*")) - before
        rows = [run / "metrics.jsonl" for run in new if (run / "metrics.jsonl").exists()]
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (attempt,) = read_attempts(rows[0].parent)
    assert attempt.status == "preempted"
    saved = rows[0].parent / f"checkpoints/iter_{attempt.last_iteration:07d}"
    assert saved.is_dir()
    (log,) = project.path.glob(f"output/logs/train/{EXPERIMENT}.{saved.parents[1].name}.log")
    for told in (output, log.read_text()):
        assert f"saved output/runs/{EXPERIMENT}/" in told
        assert "attempt 1 preempted" in told
        assert "run the same command again to go on from it" in told
