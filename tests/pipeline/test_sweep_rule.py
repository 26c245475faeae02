"""Sweeps through Snakemake: shared stages run once, a later point alone; jobs find their point."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import EXPERIMENT, Project

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]

ONE_RUN = {"train": 1, "export": 1, "report": 1, "sweep": 1}
# Runs a job's script beside Snakemake, which sees how it ended by the files that it leaves.
SUBMIT = """#!/bin/bash
bash "$1" >"$(basename "$1").out" 2>&1 &
echo $!
"""
CLUSTER = (
    *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "./submit", "--jobs", "1"),
    *("--seconds-between-status-checks", "1", "--latency-wait", "2"),
    *("--groups", "export=results", "report=results"),
)


def write(project: Project, name: str, **values: Any) -> None:
    text = yaml.safe_dump({"experiment": EXPERIMENT, **values})
    (project.path / f"configs/sweeps/{name}.yaml").write_text(text)


@pytest.fixture
def trained(finished: Project, tmp_path: Path) -> Project:
    """A copy of a project in which the experiment has been trained."""
    project = Project(tmp_path)
    shutil.copytree(finished.path, tmp_path, dirs_exist_ok=True)
    return project


def reports(project: Project, name: str) -> list[Path]:
    return sorted((project.path / "output/sweeps" / name).glob("*.html"))


def times(project: Project) -> dict[Path, int]:
    """When what points share was made."""
    found = [path for folder in ("data", "gemm") for path in (project.path / "output").glob(folder)]
    return {p: p.stat().st_mtime_ns for one in found for p in one.rglob("*") if p.is_file()}


def test_a_sweep_from_nothing_shares_data_and_tuning(untouched: Project) -> None:
    write(untouched, "rates", grid={"lr": [1e-3, 2e-3, 3e-3]})
    shared = dict.fromkeys(("tokenizer", "data", "samples", "shapes", "tune"), 1)
    done = untouched.snakemake("--dry-run", "sweep_rates")
    said = done.stdout + done.stderr
    assert f"sweep rates: 3 points of {EXPERIMENT}, lr varied" in said
    assert "3 report (points share tokenizer, data, samples, shapes, tune)" in said
    assert untouched.plan("sweep_rates") == {
        **shared,
        "settings": 14,
        "train": 3,
        "export": 3,
        "report": 3,
        "sweep": 1,
    }
    assert not (untouched.path / "output").exists()


def test_points_are_trained_once_and_one_that_is_added_alone(trained: Project) -> None:
    before = times(trained)
    # The recipe's own rate is a point: that of the experiment.
    lr = yaml.safe_load((trained.path / "configs/recipes/tiny.yaml").read_text())["lr"]
    write(trained, "rates", grid={"lr": [lr, 2e-3]})
    assert trained.plan("sweep_rates") == {"settings": 3, **ONE_RUN}
    trained.make("sweep_rates")
    (page,) = reports(trained, "rates")
    assert trained.plan("sweep_rates") == {}
    assert trained.plan(f"train_{EXPERIMENT}", "--config", "lr=2e-3") == {}, "it is the same run"

    # Of the two points that are added one cannot be trained: its directory is of another run.
    write(trained, "rates", grid={"lr": [lr, 2e-3, 4e-3, 5e-3]})
    # The same run to another end, in a file that a job would read first.
    write(trained, "again", grid={"lr": [4e-3], "train_iters": [12]})
    taken = trained.run(
        "python", "-m", "primus.config", "show", EXPERIMENT, "--json", "--config", "lr=5e-3"
    )
    directory = (trained.path / json.loads(taken.stdout)["paths"]["train"]).parent
    directory.mkdir()
    shutil.copy(next(trained.path.glob("output/runs/*/*/run.json")), directory)
    assert trained.plan("sweep_rates") == {
        "settings": 6,
        "train": 2,
        "export": 2,
        "report": 2,
        "sweep": 1,
    }
    submit = trained.path / "submit"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    done = trained.snakemake(*CLUSTER, "--keep-going", "sweep_rates")
    assert done.returncode == 1, done.stdout + done.stderr
    assert reports(trained, "rates") == [page], "not all points are there"
    assert times(trained) == before

    partial = trained.run("python", "-m", "primus.sweep", "rates")
    assert partial.returncode == 0, partial.stderr
    assert "1 of 4 points not finished: lr=0.005." in partial.stdout
    (written,) = set(reports(trained, "rates")) - {page}
    assert written.name.endswith(".partial.html")
    found = json.loads(written.with_suffix(".json").read_text())
    assert sorted(point["values"]["lr"] for point in found["points"]) == sorted(
        [lr, 2e-3, 4e-3, 5e-3]
    )
    last = {point["values"]["lr"]: point["iteration"] for point in found["points"]}
    assert last == {lr: 8, 2e-3: 8, 4e-3: 8, 5e-3: None}, "none went as far as the other sweep says"
    text = written.read_text()
    assert all(f'<td class="value-of">{value:.12g}</td>' in text for value in last)
    assert text.count('">report</a>') == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep_rate"], 'configs/sweeps: there is no sweep "rate". Fix: did you mean rates?'),
        (
            ["sweep_rates"],
            "configs/sweeps/rates.yaml:5: lr = -1: must be > 0.0 (in the point lr=-1",
        ),
        ([f"train_{EXPERIMENT}", "--config", "sweep=rates"], '--config: sweep = "rates": unknown'),
    ],
    ids=["name", "value", "key"],
)
def test_mistakes_are_one_line_before_anything_runs(
    untouched: Project, words: list[str], said: str
) -> None:
    write(untouched, "rates", grid={"lr": [1e-3, -1]})
    result = untouched.snakemake("--cores", "1", *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (line,) = (text for text in result.stderr.splitlines() if text.startswith("error: "))
    assert said in line
    assert not (untouched.path / "output").exists()
