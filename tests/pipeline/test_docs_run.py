"""Every command line of Snakemake in the documentation is planned, with the real configuration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import EXPERIMENT, REPOSITORY

from docs.site import flow
from primus.config.pipeline import TARGETS
from tests.documented import Shown, inline, said, shown
from tests.unit.compared_runs import write_compared
from tests.unit.report_run import RunSpec

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

COMMANDS = [one for one in shown() if one.words[0] == "snakemake"]
# Within sentences; some name an option and no target, or experiments a and b.
COMMANDS += [
    one
    for one in dict.fromkeys(inline("snakemake"))
    if any(word.startswith(f"{kind}_") for word in one.words for kind in TARGETS)
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as a reader of the pages has it, with an experiment, a model and runs of his own."""
    path = tmp_path_factory.mktemp("reader")
    for name in ("Snakefile", "rules", "profiles", "corpus"):
        (path / name).symlink_to(REPOSITORY / name)
    (path / "slurm").symlink_to("profiles/slurm")
    shutil.copytree(REPOSITORY / "configs", path / "configs")
    shutil.copy(path / f"configs/{EXPERIMENT}.yaml", path / "configs/mine.yaml")
    for experiment in (EXPERIMENT, "deepseek_v2_lite_tiny", "llama3_8B", "llama2_7B"):
        write_compared(path, experiment=experiment, spec=RunSpec(experiment=experiment))
    return path


@pytest.fixture(scope="module")
def planned(reader: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """How each command ended, by its words."""
    words = list(dict.fromkeys([*(one.words for one in COMMANDS), tuple(flow.GRAPH)]))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("documented_dry_runs.py"))],
        cwd=reader,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
        input=json.dumps(words),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(words), done.stderr
    yield dict(zip(map(" ".join, words), answers, strict=True))
    made = {path.name for path in reader.iterdir()}
    assert made <= {
        "Snakefile",
        "rules",
        "profiles",
        "corpus",
        "slurm",
        "configs",
        "output",
        ".snakemake",
    }


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_can_be_planned(command: Shown, planned: dict[str, dict[str, Any]]) -> None:
    done = planned[" ".join(command.words)]
    if command.output is None:
        assert done["status"] == 0, done["output"][-3000:]
        assert "Traceback" not in done["output"]
    else:
        assert said(command.output, done["output"]), done["output"]


def test_the_picture_shows_the_rules_as_they_are(planned: dict[str, dict[str, Any]]) -> None:
    done = planned[" ".join(flow.GRAPH)]
    assert done["status"] == 0
    edges = flow.graph_of(done["output"])
    assert len(edges) > 20
    assert flow.PICTURE.read_text() == flow.svg(edges), "run: python docs/site/flow.py"
