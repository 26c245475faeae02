"""The rule that compares runs: planned, made, up to date, made again; and mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from project import EXPERIMENT, Project

from tests.unit.compared_runs import write_compared
from tests.unit.report_run import RunSpec

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

RUNS = f"runs={EXPERIMENT},kept"


@pytest.fixture
def compared(untouched: Project) -> Project:
    """A project with two made-up runs of an experiment that was edited since."""
    spec = RunSpec(restart=False)
    write_compared(untouched.path, values={"lr": 1e-3}, spec=spec)
    kept = write_compared(untouched.path, values={"lr": 2e-3}, spec=spec)
    shutil.move(kept, untouched.path / "kept")
    return untouched


def test_a_comparison_is_made_once_and_again_when_a_run_went_on(compared: Project) -> None:
    assert compared.plan("compare", "--config", RUNS) == {"compare": 1, "comparison": 1}
    assert not (compared.path / "output/compare").exists()
    compared.make("compare", "--config", RUNS)
    (page,) = (compared.path / "output/compare").glob("*.html")
    assert page.with_suffix(".json").is_file()
    assert "vs" in page.read_text()
    # By the files themselves: Snakemake's own records may be lost.
    shutil.rmtree(compared.path / ".snakemake")
    assert compared.plan("compare", "--config", RUNS) == {}
    with (compared.path / "kept/metrics.jsonl").open("a") as stream:
        stream.write("\n")
    assert compared.plan("compare", "--config", RUNS)["comparison"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "--config", f"runs={EXPERIMENT},nosuch"], 'RUN = "nosuch": there is no such'),
        ([f"train_{EXPERIMENT}", "--config", "runs=a,b"], '--config: runs = "a,b": unknown key'),
    ],
    ids=["no such run", "no comparison"],
)
def test_mistakes_are_one_line_before_anything_runs(
    compared: Project, words: list[str], said: str
) -> None:
    before = sorted(Path(compared.path).rglob("*"))
    result = compared.snakemake("--cores", "1", *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (line,) = (text for text in result.stderr.splitlines() if text.startswith("error: "))
    assert said in line
    made = {path for path in compared.path.rglob("*") if ".snakemake" not in path.parts}
    assert made == {path for path in before if ".snakemake" not in path.parts}
