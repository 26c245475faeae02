"""Two models of the same shapes: the second finds everything in the store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_run import REPOSITORY

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.config.schema.keys import Stage

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(300)]


def settings_file(path: Path, experiment: str, stage: Stage, changes: dict[str, Any]) -> Path:
    settings = load(experiment, changes, root=REPOSITORY, stages=()).settings
    file = path / f"{experiment}.{stage}.json"
    StageSettings.of_key(identities(settings)[stage], experiment).save(file)
    return file


def run(module: str, *arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_tuning_llama31_after_llama3_measures_nothing(tmp_path) -> None:
    changes: dict[str, Any] = {
        "hardware": "cpu",
        "nproc_per_node": 1,
        "seq_length": 32,
        "micro_batch_size": 2,
        "gemm_tuning": {
            "shapes": "trace",
            "coverage": 0.6,
            "step_rounds": 0,
        },
    }
    counts = {}
    for experiment in ("llama3_8B_tiny", "llama3.1_8B_tiny"):
        found, tuned = (tmp_path / f"{experiment}.{kind}.jsonl" for kind in ("shapes", "tuned"))
        frozen = settings_file(tmp_path, experiment, "shapes", changes)
        run("primus.shapes", "--settings", frozen, "--output", found)
        frozen = settings_file(tmp_path, experiment, "tune", changes)
        options = json.dumps({"gemm_tuning": {"store": str(tmp_path / "store")}})
        files = ("--settings", frozen, "--shapes", found, "--output", tuned)
        printed = run("primus.tune", *files, "--options", options)
        told = re.search(r"(\d+) measured now, (\d+) from the store", printed)
        assert told is not None
        counts[experiment] = int(told[1]), int(told[2])
    measured, reused = counts["llama3_8B_tiny"]
    assert measured > 0
    assert reused == 0
    assert counts["llama3.1_8B_tiny"] == (0, measured)
    listed = run("primus.tune", "--list", "--store", tmp_path / "store")
    assert re.search(rf"from +llama3_8B_tiny on \S+ \({measured}\)\n", listed)
