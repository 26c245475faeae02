"""The tune stage times real training steps in turns, with kernels that were planted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_run import REPOSITORY, settings_of

from primus.artifacts.gemm import load_shapes, load_tuned, save_lines
from primus.artifacts.steps import TUNED, TUNED_PLAIN, UNTUNED
from primus.gemm.kernels import KERNELS, dispatchable
from primus.gemm.problem import Problem

pytestmark = pytest.mark.slow

PLANTED = "relayout_a"
# So short a budget leaves nothing for whole steps; the second time they have time enough.
TUNING = {"enabled": True, "step_rounds": 2, "coverage": 0.2, "budget_minutes": 0.05}
AGAIN = """
import sys, time
from pathlib import Path
from primus.config.frozen import StageSettings
from primus.tune_steps import whole_steps
settings, shapes, tuned = map(Path, sys.argv[1:])
deadline = time.monotonic() + 250
print(whole_steps(StageSettings.load(settings, "tune"), shapes, tuned, deadline=deadline))
"""


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_whole_steps_run_with_the_tuned_kernels_in_turns(tmp_path: Path) -> None:
    shapes, tuned = tmp_path / "shapes.jsonl", tmp_path / "tuned.jsonl"
    for stage in ("shapes", "tune"):
        settings_of(stage, gemm_tuning=TUNING).save(tmp_path / f"{stage}.json")
    settings = tmp_path / "shapes.json"
    run(tmp_path, "-m", "primus.shapes", "--settings", str(settings), "--output", str(shapes))
    told = run(
        tmp_path,
        *("-m", "primus.tune", "--settings", str(tmp_path / "tune.json")),
        *("--shapes", str(shapes), "--output", str(tuned)),
    )
    assert "s were left of gemm_tuning.budget_minutes" in told, told
    header, rows = load_tuned(tuned)
    assert header.steps is not None
    assert header.steps.reason in told
    planted = [
        row.model_copy(update={"candidate": PLANTED, "reason": "planted"})
        if dispatchable(problem := Problem.from_json(row.problem)) is None
        and KERNELS[PLANTED].legal(problem)
        else row
        for row in rows
    ]
    save_lines(tuned, header, planted)
    told = run(tmp_path, "-c", AGAIN, str(tmp_path / "tune.json"), str(shapes), str(tuned))
    assert "whole steps of one micro-batch, processor time, 4 rounds" in told, told
    header, _ = load_tuned(tuned)
    assert header.steps is not None
    assert header.process is not None
    assert header.steps.reason == ""
    assert list(header.steps.contestants) == [UNTUNED, TUNED, TUNED_PLAIN]
    for contestant in header.steps.contestants.values():
        assert [len(samples) for samples in contestant.samples] == [2, 2]
        assert contestant.minimum > 0
    calls = sum(row.calls for row in planted if row.candidate == PLANTED)
    assert load_shapes(shapes)[0].calls >= calls > 0
    served = {name: one.served for name, one in header.steps.contestants.items()}
    assert served == {UNTUNED: 0, TUNED: calls, TUNED_PLAIN: calls}
