"""The benchmarks run: all of them ask for help, and the one of the step trains what it says."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_run import REPOSITORY

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPTS = sorted(
    path.stem
    for path in (REPOSITORY / "benchmarks").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
SHAPE = {
    "num-layers": 2,
    "hidden-size": 64,
    "ffn-hidden-size": 128,
    "num-attention-heads": 4,
    "num-query-groups": 2,
    "vocab-size": 256,
    "seq-length": 64,
}
TRAINING = ["primus", "primus tuned", "primus loop", "transformers eager"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_how_it_is_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out
    listed = (REPOSITORY / "benchmarks/README.md").read_text(encoding="utf-8")
    assert f"| `{name}.py` |" in listed


def test_the_steps_of_all_contestants_have_one_loss(tmp_path: Path) -> None:
    sizes = [word for name, size in SHAPE.items() for word in (f"--{name}", str(size))]
    contestants = [*TRAINING, "gemm only", "best gemm only"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.step", *sizes, "--rounds", "2"),
            *("--only", ",".join(contestants), "--json", str(tmp_path / "figures.json")),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = {
        row[0]: row
        for line in done.stdout.splitlines()
        if len(row := [cell.strip() for cell in line.strip("|").split("|")]) == 7
    }
    assert {rows[name][-1] for name in TRAINING} == {rows["primus"][-1]}
    assert re.fullmatch(r"[45]\.\d{5}", rows["primus"][-1])
    assert rows["gemm only"][-1] == ""
    seconds = json.loads((tmp_path / "figures.json").read_text())["seconds"]
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(contestants, 2)
