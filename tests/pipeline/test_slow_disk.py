"""A training on a file system that takes its time over every sync and rename."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from trainer_run import Bench

from primus.artifacts.run import read_attempts
from primus.reports.budget import phases, time_budget
from primus.reports.curve import read_metrics

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

SAVES = 3
CHANGES = {"train_iters": 2 * SAVES, "save_interval": 2, "eval_iters": 0}
DELAY = 0.2
CALLS = "fsync,fdatasync,rename"


@pytest.mark.fault(
    19,
    injected="strace delays each fsync, fdatasync and rename of the stage and its rank by 0.2 s",
    observed="it completes with the same losses; the report's time has what saving took",
)
def test_a_slow_file_system(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    bench = Bench(tmp_path)
    quick, slow = bench.run("quick", **CHANGES), bench.run("slow", **CHANGES)
    quick.finish()
    trace = tmp_path / "trace"
    command = [
        *("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-o", str(trace)),
        *("-e", f"trace={CALLS}", "-e", f"inject={CALLS}:delay_enter={int(1e6 * DELAY)}"),
        *slow.command(),
    ]
    done = subprocess.run(
        command, env=slow.variables(), capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not follow a process here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert slow.curve() == quick.curve()
    delayed = re.findall(r"fsync\(\d+<\S+/checkpoints/\.iter_\S+>.*\(DELAYED\)", trace.read_text())
    assert len(delayed) >= SAVES, "files of checkpoints were synced late"
    (record,) = read_attempts(slow.directory)
    # Each save syncs its files and its manifest, and renames both.
    assert record.save_seconds > 3 * DELAY * SAVES
    curve = read_metrics(slow.directory / "metrics.jsonl", [record])
    assert record.finished is not None
    budget = time_budget(curve, [record], record.finished - record.started, phases([record], curve))
    assert budget.saving == record.save_seconds
    # An attempt begins before its ranks do, which is when files were written for them.
    assert record.started < (slow.directory / "attempts/001/about.json").stat().st_mtime
    first = min(row.time - row.seconds_per_iteration for row in curve.train)
    assert budget.start == pytest.approx(first - record.started)
    told = [row for row in curve.train if row.data_seconds]
    assert budget.data == pytest.approx(sum(row.data_seconds or 0.0 for row in told))
    assert [row.iteration for row in curve.memory][:1] == [1]
    assert curve.memory[-1].iteration == curve.train[-1].iteration
