"""`python -m primus.compare --check`: figures follow from the files of the runs, or are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus.compare import main
from primus.errors import ArtifactError, UserError
from tests.unit.compared_runs import EXPERIMENT, edit, write_compared
from tests.unit.report_run import RunSpec

OTHER = "llama2_7B_tiny"
RESULT = Path("ab.json")


@pytest.fixture(autouse=True)
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first of two runs that were compared."""
    monkeypatch.chdir(tmp_path)
    run = write_compared(tmp_path, spec=RunSpec(train_iters=600))
    write_compared(tmp_path, experiment=OTHER, spec=RunSpec(experiment=OTHER, seed=2))
    main([EXPERIMENT, OTHER, "--output", "ab.html"])
    return run


def refused() -> list[str]:
    with pytest.raises(ArtifactError) as caught:
        main(["--check", str(RESULT)])
    return str(caught.value).splitlines()


def change(edit_content: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(RESULT.read_text())
    edit_content(content)
    RESULT.write_text(json.dumps(content))


def test_a_comparison_checks_itself(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["--check", str(RESULT)])
    assert capsys.readouterr().out == "ab.json: every figure follows from the runs\n"


def test_check_names_each_figure_of_the_comparison_that_is_wrong() -> None:
    def wrong(content: dict[str, Any]) -> None:
        content["runs"][0]["tokens_per_second"]["median"] += 1
        content["runs"][1]["final_loss"] = 0.5
        content["throughput"][0]["ratio"]["low"] = 2.0
        content["losses"][0]["rows"] += 1
        # Nothing that is computed from the rows.
        content["runs"][0]["report"] = "failed"
        content["notes"] = []

    change(wrong)
    names = [line.split(": ")[1] for line in refused()]
    assert names == [
        f"{OTHER}.final_loss",
        f"{OTHER}.losses.rows",
        f"{OTHER}.throughput.ratio.low",
        f"{EXPERIMENT}.tokens_per_second.median",
    ]
    assert "the comparison says 0.5, its inputs give " in refused()[0]


def test_check_refuses_a_run_that_went_on(compared: Path) -> None:
    with (compared / "metrics.jsonl").open("a") as stream:
        stream.write("\n")
    (line,) = refused()
    assert "metrics.jsonl: has " in line


def test_check_sees_what_no_hash_of_the_comparison_covers(compared: Path) -> None:
    for path in compared.glob("attempts/*/attempt.json"):
        edit(path, world_size=64)
    assert [line.split(": ")[1] for line in refused()] == [f"{EXPERIMENT}.devices"]


def test_check_holds_losses_that_are_no_numbers() -> None:
    def odd(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        last = [row for row in rows if row["type"] == "train"][-1]
        last["loss"] = float("nan")
        return rows

    run = write_compared(Path.cwd(), values={"lr": 2e-3}, spec=RunSpec(edit_rows=odd))
    main([OTHER, str(run), "--output", "ab.html"])
    main(["--check", str(RESULT)])


def test_check_without_the_runs_says_what_to_do(compared: Path) -> None:
    shutil.rmtree(compared)
    with pytest.raises(UserError, match=rf"{EXPERIMENT}: there is no directory .*Fix: check it"):
        main(["--check", str(RESULT)])


def test_check_refuses_what_is_no_comparison() -> None:
    change(lambda content: content.update(runs=content["runs"][:1]))
    assert refused() == ["ab.json: is a comparison of 1 runs"]
    RESULT.write_text("{}")
    assert refused()


@pytest.mark.parametrize("others", [["mine"], ["--output", "x.html"], ["--json"], ["--unknown"]])
def test_check_of_a_comparison_stands_alone(
    others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--check", str(RESULT), *others])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
