"""eval_<experiment>: what it runs, what it leaves alone, and that the report shows it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from project import EXPERIMENT, Project

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]

TARGET = f"eval_{EXPERIMENT}"


@pytest.fixture(scope="module")
def evaluated(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the finished project, evaluated."""
    project = object.__new__(Project)
    project.path = tmp_path_factory.mktemp("evaluated") / "project"
    shutil.copytree(finished.path, project.path, symlinks=True)
    assert project.plan(f"train_{EXPERIMENT}") == {}
    assert project.plan(TARGET) == {"settings": 1, "evaluate": 1, "report": 1}
    project.make(TARGET)
    return project


def run_of(project: Project) -> Path:
    (path,) = project.path.glob(f"output/runs/{EXPERIMENT}/*/eval.json")
    return path.parent


def test_the_report_shows_it_and_nothing_is_left_to_do(evaluated: Project) -> None:
    run = run_of(evaluated)
    found = json.loads((run / "eval.json").read_text())
    assert found["source"] == "valid"
    assert found["tokens"] > 1000
    assert math.exp(found["loss"]) == pytest.approx(found["perplexity"])
    train = json.loads((run / "train.json").read_text())
    # Eight iterations: far from a good model, and the same text by another cut.
    assert found["loss"] == pytest.approx(train["validation_loss"], abs=0.3)
    report = json.loads((run / "report.json").read_text())
    assert [c["outcome"] for c in report["checks"] if c["name"] == "Evaluation"] == ["ok"]
    assert "Bits per byte" in (run / "report.html").read_text()
    assert evaluated.plan(TARGET, f"train_{EXPERIMENT}") == {}
    assert evaluated.plan(f"train_{EXPERIMENT}") == {}


def test_another_stride_is_another_evaluation_and_nothing_else(evaluated: Project) -> None:
    changed = ("--config", "evaluation={stride: 8}")
    again = {"settings": 1, "evaluate": 1, "report": 1}
    assert evaluated.plan(TARGET, *changed) == again
    assert evaluated.plan(f"data_{EXPERIMENT}", f"export_{EXPERIMENT}", *changed) == {}
    assert evaluated.plan(TARGET, "--config", "evaluation={batch_size: 2}") == {}


def test_without_it_the_report_does_without(evaluated: Project) -> None:
    path = run_of(evaluated) / "eval.json"
    aside = path.rename(path.with_suffix(".aside"))
    assert evaluated.plan(f"train_{EXPERIMENT}") == {"report": 1}
    aside.rename(path)
    assert evaluated.plan(f"train_{EXPERIMENT}") == {}


def test_the_run_can_be_asked_to_write(evaluated: Project) -> None:
    done = evaluated.run(
        "python",
        *("-m", "primus.generate", EXPERIMENT, "It", "--temperature", "0", "--json"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert 0 < len(found["tokens"]) <= 64
    assert f"{run_of(evaluated).relative_to(evaluated.path)}/hf of iter_0000008" in done.stderr
