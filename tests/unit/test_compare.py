"""Comparisons of made-up runs: which runs, what differs, what is said, page, JSON, table."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report import Page

from primus.artifacts.comparison import ComparisonManifest
from primus.artifacts.report import Check, ReportManifest
from primus.artifacts.run import RunIdentity
from primus.compare import main
from primus.errors import UserError
from primus.reports.comparison import build
from primus.reports.comparison.asked import Asked, names_in, take
from primus.reports.comparison.find import find_runs
from primus.reports.comparison.read import read_run, steady
from primus.reports.comparison.settings import touched
from primus.reports.curve import Curve
from tests.unit.compared_runs import EXPERIMENT, REPOSITORY, edit, faster, write_compared
from tests.unit.report_run import RunSpec

OTHER = "llama2_7B_tiny"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def comparison(*names: str | Path) -> ComparisonManifest:
    return build.compare(build.read_runs(find_runs([str(name) for name in names])))


def plain(**values: Any) -> RunSpec:
    """One attempt: no row of it is a second warm-up."""
    return RunSpec(**({"restart": False, "train_iters": 600} | values))


def settings_of(found: ComparisonManifest) -> dict[str, tuple[list[Any], str, list[str]]]:
    return {row.key: (row.values, row.how, row.stages) for row in found.settings}


def environment_of(found: ComparisonManifest) -> dict[str, list[str | None]]:
    return {row.name: row.values for row in found.environment}


def test_every_way_to_name_a_run(here: Path) -> None:
    first = write_compared(here)
    second = write_compared(here, values={"lr": 2e-3})
    relative = second.relative_to(here)
    for name in (
        first,
        first / "train.json",
        first.relative_to(here),
        f"{EXPERIMENT}/{first.name}",
    ):
        found = find_runs([str(name), str(relative)])
        assert [run.directory.resolve() for run in found] == [first, second]
        assert [run.label for run in found] == [
            f"{EXPERIMENT}/{first.name}",
            f"{EXPERIMENT}/{second.name}",
        ]


def test_an_experiment_is_its_newest_run_that_has_logged_something(here: Path) -> None:
    old = write_compared(here)
    new = write_compared(here, values={"lr": 2e-3})
    other = write_compared(here, experiment=OTHER)
    edit(new / "attempts/002/attempt.json", started=2e9)
    begun = new.with_name("0" * 12)
    begun.mkdir()
    (begun / "run.json").write_bytes((old / "run.json").read_bytes())
    found = find_runs([EXPERIMENT, OTHER])
    assert [run.directory.resolve() for run in found] == [new, other]
    assert [run.label for run in found] == [EXPERIMENT, OTHER]
    edit(old / "attempts/002/attempt.json", started=3e9)
    assert find_runs([EXPERIMENT, OTHER])[0].directory.resolve() == old


def test_to_sample_and_to_compare_the_same_run_is_the_newest(here: Path) -> None:
    """A run that was started again is newer than one that was saved to or moved since."""
    from primus.trainer.named_run import find_run

    runs = [write_compared(here, values={"lr": rate}) for rate in (1e-3, 2e-3, 4e-3)]
    other = write_compared(here, experiment=OTHER)
    for number in range(3):
        edit(runs[number] / "attempts/002/attempt.json", started=2e9 + number)
        (runs[number - 1] / "checkpoints").touch()
        compared, _ = find_runs([EXPERIMENT, OTHER])
        sampled = find_run(EXPERIMENT, newest=True)
        assert compared.directory.resolve() == sampled.resolve() == runs[number]
    assert find_run(OTHER).resolve() == other


def test_the_same_run_in_two_places_is_told_apart_by_its_path(here: Path) -> None:
    run = write_compared(here)
    shutil.copytree(run, here / "kept")
    assert [one.label for one in find_runs([str(run), "kept"])] == [str(run), "kept"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "none": ([], "none is named.*Fix: name"),
    "one": ([EXPERIMENT], "only .* is named.*Fix: name another run"),
    "nosuch": ([EXPERIMENT, "nosuch"], 'RUN = "nosuch": there is no such run.*Fix: name a dir'),
    "misspelt": ([EXPERIMENT, "llama3_8_tiny"], f"Fix: did you mean {EXPERIMENT}?"),
    "misspelt key": (["{run}", "{run}x"], f"Fix: did you mean {EXPERIMENT}/"),
    "twice": ([EXPERIMENT, "{run}"], "is 2 times the same run.*Fix: name another"),
    "many": ([f"run{i}" for i in range(9)], "9 are named.*Fix: compare fewer"),
    "not begun": ([EXPERIMENT, "begun"], "logged no iteration yet.*Fix: train"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_fix(here: Path, mistake: str) -> None:
    run = write_compared(here)
    (here / "begun").mkdir()
    (here / "begun/run.json").write_bytes((run / "run.json").read_bytes())
    names, said = MISTAKES[mistake]
    given = [name.format(run=f"{EXPERIMENT}/{run.name}") for name in names]
    with pytest.raises(UserError, match=said) as caught:
        main(given)
    assert str(caught.value).isprintable()


def test_the_directory_of_an_experiment_is_its_newest_run(here: Path) -> None:
    run = write_compared(here)
    other = write_compared(here, experiment=OTHER)
    found = find_runs([f"output/runs/{EXPERIMENT}", f"output/runs/{OTHER}/"])
    assert [one.directory.resolve() for one in found] == [run, other]


def test_without_any_run_the_advice_is_to_train(here: Path) -> None:
    with pytest.raises(UserError, match="train one first"):
        find_runs(["a", "b"])


def test_settings_differ_by_key_with_the_stages_they_touch(here: Path) -> None:
    write_compared(here, spec=plain())
    write_compared(
        here,
        experiment=OTHER,
        spec=plain(experiment=OTHER),
        values={
            "model": EXPERIMENT,
            "gemm_tuning": {"min_gain": 0.07},
            "lr": 2e-3,
            "train_iters": 900,
            "lr_decay_iters": 200,
            "log_interval": 7,
        },
    )
    found = settings_of(comparison(EXPERIMENT, OTHER))
    after = ["train", "export", "evaluate", "report"]
    assert found["lr"][1:] == ("identity", after)
    assert found["lr"][0][1] == 2e-3
    assert found["gemm_tuning.min_gain"] == ([None, 0.07], "identity", ["tune", *after])
    assert found["train_iters"][1:] == ("extent", after)
    assert found["log_interval"][1:] == ("option", [])
    assert "hidden_size" not in found
    assert "seq_length" not in found


def test_a_key_of_the_text_touches_all_that_is_built_on_it() -> None:
    how, stages = touched("tokenizer_vocab_size")
    assert how == "identity"
    assert stages[0] == "tokenizer"
    assert {"data", "samples", "train", "export", "report"} <= set(stages)
    assert "tune" not in touched("lr")[1]
    assert touched("no_such_key") == ("", [])


def test_tuning_that_is_off_is_one_difference_and_not_one_for_each_of_its_keys(here: Path) -> None:
    on = write_compared(here, values={"gemm_tuning": {"min_gain": 0.07}})
    off = write_compared(here, values={"gemm_tuning": {"enabled": False}}, spec=plain(tuning=False))
    found = comparison(on, off)
    stages = ["tune", "train", "export", "evaluate", "report"]
    assert settings_of(found) == {"gemm_tuning.enabled": ([True, False], "identity", stages)}
    assert not any("frozen settings" in note for note in found.notes)
    tuned = environment_of(found)["tuned GEMMs"]
    assert [str(value).partition(",")[0] for value in tuned] == ["yes", "no"]


def test_settings_that_are_gone_are_not_taken_for_the_default(here: Path) -> None:
    kept = write_compared(here, values={"log_interval": 7, "gemm_tuning": {"min_gain": 0.07}})
    lost = write_compared(here, values={"lr": 2e-3}, settings=False)
    found = comparison(kept, lost)
    assert list(settings_of(found)) == ["lr"]
    (note,) = (note for note in found.notes if "Not all frozen settings" in note)
    assert lost.name in note
    assert kept.name not in note
    third = write_compared(here, values={"gemm_tuning": {"min_gain": 0.09}})
    row = next(r for r in comparison(kept, lost, third).settings if r.key.endswith("min_gain"))
    assert (row.values, row.known) == ([0.07, None, 0.09], [True, False, True])


def test_a_key_that_is_not_set_has_its_default(here: Path) -> None:
    """A run of an older version lacks keys that came later."""
    old = write_compared(here, settings=False)
    new = write_compared(here, values={"seed": 4321}, settings=False)
    content = json.loads((old / "train.json").read_text())
    assert content["settings"].pop("clip_grad") == 1.0
    edit(old / "train.json", settings=content["settings"])
    assert list(settings_of(comparison(old, new))) == ["seed"]


def test_equal_throughput_is_not_called_faster_and_a_gain_is(here: Path) -> None:
    first = write_compared(here, spec=plain(seed=1))
    same = write_compared(here, values={"lr": 1e-3}, spec=plain(seed=2))
    fast = write_compared(here, values={"lr": 2e-3}, spec=plain(seed=3, edit_rows=faster(1.05)))
    equal, gain = comparison(first, same, fast).throughput
    assert equal.ratio is not None
    assert not equal.ratio.significant
    assert equal.ratio.low < 1 < equal.ratio.high
    assert ": no difference of throughput can be told from the noise (97.5 % " in equal.words
    assert gain.ratio is not None
    assert 1.02 < gain.ratio.low < 1.05 < gain.ratio.high < 1.08
    assert re.match(rf"{EXPERIMENT}/\w+ is [45]\.?\d* % faster than {EXPERIMENT}/\w+ ", gain.words)
    (alone,) = comparison(first, fast).throughput
    assert alone.ratio is not None
    assert alone.ratio.confidence == 0.95
    (slower,) = comparison(fast, first).throughput
    assert "% slower than" in slower.words


def test_medians_are_those_of_the_rows_after_the_warm_up(here: Path) -> None:
    def slow_start(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["type"] == "train":
                row["tokens_per_second"] = 10.0 if row["iteration"] <= 10 else 1000.0
        return rows

    run = write_compared(here, spec=plain(edit_rows=slow_start))
    other = write_compared(here, values={"lr": 2e-3}, spec=plain())
    found = comparison(run, other).runs[0]
    assert (found.rows, found.warm_up_rows) == (118, 2)
    assert found.tokens_per_second.model_dump() == {"p5": 1000.0, "median": 1000.0, "p95": 1000.0}


def test_each_attempt_has_its_own_warm_up(here: Path) -> None:
    """Attempt 1 logs 5 to 180, attempt 2 goes on from the checkpoint at 100."""
    run = write_compared(here, spec=RunSpec())
    other = write_compared(here, values={"lr": 2e-3}, spec=RunSpec())
    left = {row.iteration for row in read_run(find_runs([str(run), str(other)])[0]).steady}
    assert {5, 10, 105, 110}.isdisjoint(left)
    assert len(left) == 60 - 4


@pytest.mark.parametrize(
    ("iterations", "kept"), [([2, 4, 6, 8], [4, 6, 8]), ([8], [8]), ([100, 200, 300], [200, 300])]
)
def test_a_short_run_keeps_what_it_has(here: Path, iterations: list[int], kept: list[int]) -> None:
    run = write_compared(here, spec=plain())
    other = write_compared(here, values={"lr": 2e-3}, spec=plain())
    rows = read_run(find_runs([str(run), str(other)])[0]).curve.train
    some = [rows[0].model_copy(update={"iteration": iteration}) for iteration in iterations]
    assert [row.iteration for row in steady(Curve(train=some, valid=[]))] == kept


def test_rows_that_were_run_again_are_left_out(here: Path) -> None:
    """The first attempt died at 180, and the second ran 101 to 180 again, twice as fast."""

    def second_is_fast(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["type"] == "train":
                row["tokens_per_second"] = 1000.0 if row["attempt"] == 1 else 2000.0
        return rows

    run = write_compared(here, spec=RunSpec(edit_rows=second_is_fast))
    other = write_compared(here, values={"lr": 2e-3}, spec=RunSpec())
    found = read_run(find_runs([str(run), str(other)])[0])
    assert [row.iteration for row in found.curve.train] == list(range(5, 301, 5))
    assert {r.tokens_per_second for r in found.steady if r.iteration <= 100} == {1000.0}
    assert {r.tokens_per_second for r in found.steady if r.iteration > 100} == {2000.0}


def shifted(by: float) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if "loss" in row:
                row["loss"] += by
        return rows

    return change


def test_bitwise_equal_losses_are_said_to_be_so(here: Path) -> None:
    first = write_compared(here, spec=plain())
    second = write_compared(here, values={"lr": 2e-3}, spec=plain())
    (found,) = comparison(first, second).losses
    assert (found.equal_rows, found.mean, found.same_batches) == (120, None, True)
    assert "training losses are bit for bit the same in all 120 rows" in found.words
    edit(second / "run.json", samples_fingerprint="other")
    (apart,) = comparison(first, second).losses
    assert (apart.equal_rows, apart.same_batches) == (0, False)
    assert "on other batches" in apart.words


def test_a_difference_of_losses_on_the_same_batches(here: Path) -> None:
    first = write_compared(here, spec=plain())
    noise = plain(seed=9)
    second = write_compared(here, values={"lr": 2e-3}, spec=noise)
    lower = write_compared(here, values={"lr": 1e-3}, spec=plain(edit_rows=shifted(-0.02), seed=7))
    found = comparison(first, second, lower)
    same, apart = found.losses
    assert same.mean is not None
    assert not same.mean.significant
    assert "can be told from the noise over the last quarter" in same.words
    assert apart.mean is not None
    assert apart.mean.value == pytest.approx(-0.02)
    assert apart.rows == 30
    assert "0.02 nats lower than" in apart.words
    assert "another seed" in apart.words


def test_where_rows_stand_at_other_tokens_the_curve_is_read_off(here: Path) -> None:
    first = write_compared(here, spec=plain(seed=1))
    other = write_compared(here, values={"lr": 2e-3}, spec=plain(seed=1, log_interval=4))
    (found,) = comparison(first, other).losses
    assert found.mean is not None
    assert found.rows == 150 - 112
    assert abs(found.mean.value) < 0.06


def test_rows_that_hold_no_number_spoil_nothing(here: Path) -> None:
    def odd(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        train = [row for row in rows if row["type"] == "train"]
        train[60]["loss"] = float("nan")
        train[70]["loss"] = None
        train[80]["tokens_per_second"] = 0.0
        return rows

    first = write_compared(here, spec=plain(seed=1))
    second = write_compared(here, values={"lr": 2e-3}, spec=plain(seed=1, edit_rows=odd))
    main([str(first), str(second), "--output", "compare.html"])
    found = ComparisonManifest.load("compare.json")
    assert found.losses[0].equal_rows == 118
    ratio = found.throughput[0].ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(1, abs=0.01)
    (check,) = found.runs[1].warnings
    assert (check.name, check.detail) == ("Losses", "not a number at iteration 305")


def test_losses_of_other_tokenizers_are_not_compared(here: Path) -> None:
    first = write_compared(here, spec=plain())
    second = write_compared(here, values={"lr": 2e-3}, spec=plain(seed=3))
    edit(second / "run.json", tokenizer_fingerprint="other")
    (found,) = comparison(first, second).losses
    assert found.mean is None
    assert "tokenizers differ" in found.words


def test_few_rows_are_too_few(here: Path) -> None:
    short = {"train_iters": 20, "save_interval": 20, "restart": False}
    first = write_compared(here, spec=RunSpec(**short))
    second = write_compared(here, values={"lr": 2e-3}, spec=RunSpec(**short, seed=9))
    found = comparison(first, second)
    assert found.throughput[0].ratio is None
    assert "2 and 2 rows after the warm-up, too few to tell" in found.throughput[0].words
    assert "4 rows at common tokens, too few to tell their training" in found.losses[0].words


def test_a_short_run_is_compared_over_its_last_rows(here: Path) -> None:
    short = {"train_iters": 120, "restart": False}
    first = write_compared(here, spec=RunSpec(**short))
    lower = RunSpec(**short, edit_rows=shifted(-0.02))
    second = write_compared(here, values={"lr": 2e-3}, spec=lower)
    (found,) = comparison(first, second).losses
    assert found.mean is not None
    assert (found.rows, found.mean.value) == (18, pytest.approx(-0.02))
    assert "over the last rows that both have, on the same batches" in found.words


def test_environments_differ_by_fact(here: Path) -> None:
    first = write_compared(here, spec=plain())
    second = write_compared(here, values={"lr": 2e-3}, spec=plain())
    environment = json.loads((first / "train.json").read_text())["environment"]
    environment["libraries"] = {
        **environment["libraries"],
        "torch": "2.14.0",
        "transformer-engine": "2.9",
    }
    environment |= {"device": "H200", "variables": {"SLURM_JOB_ID": "7", "NCCL_ALGO": "Ring"}}
    edit(second / "train.json", environment=environment)
    edit(second / "attempts/001/attempt.json", host="node7", world_size=4)
    found = comparison(first, second)
    facts = environment_of(found)
    assert facts["torch"] == ["2.13.0", "2.14.0"]
    assert facts["device"] == ["2 × Intel Xeon, AVX512-BF16, 2 cores", "2 × H200"]
    assert facts["layout"] == ["TP 1, PP 1, DP 2", "TP 1, PP 1, DP 4"]
    assert facts["ranks"] == ["2", "4"]
    assert facts["NCCL_ALGO"] == ["not set", "Ring"]
    assert facts["OMP_NUM_THREADS"] == ["1", "not set"]
    assert facts["transformer-engine"] == ["not installed", "2.9"]
    assert not {"SLURM_JOB_ID", "Python", "numpy", "samples"} & facts.keys()
    said = found.throughput[0].words
    assert "other devices" in said
    assert "other hosts" in said
    assert "The first has 4 ranks, the second 2." in said


def test_what_speaks_against_a_run_is_said(here: Path) -> None:
    good = write_compared(here, spec=plain())
    bad = write_compared(here, values={"lr": 2e-3}, spec=RunSpec())
    metrics = bad / "metrics.jsonl"
    rows = [row for row in metrics.read_text().splitlines() if '"iteration": 250' not in row]
    metrics.write_text("\n".join([*rows, '{"type": "tr']) + "\n")
    edit(bad / "train.json", warnings=["it was slow"], loss=1.0)
    found = {run.directory: run for run in comparison(good, bad).runs}
    assert found[str(good)].warnings == []
    told = {check.name: check for check in found[str(bad)].warnings}
    assert "nothing between iterations 245 and 255" in told["Metrics complete"].detail
    assert told["Metrics complete"].outcome == "failed"
    assert "loss 1.0 in train.json" in told["Totals agree"].detail
    assert told["Training"].detail == "it was slow"


def test_a_report_counts_as_long_as_the_files_are_those_of_it(here: Path) -> None:
    first = write_compared(here, spec=plain())
    second = write_compared(here, values={"lr": 2e-3}, spec=plain())
    runs = build.read_runs(find_runs([str(first), str(second)]))
    check = Check(name="Learnt", outcome="warning", detail="no more than token frequencies")
    (second / "report.json").write_text(json.dumps(report_of(runs[1].inputs, check)))
    ReportManifest.load(second / "report.json")
    found = comparison(first, second)
    assert [run.report for run in found.runs] == [None, "warnings"]
    assert found.runs[1].warnings == [check]
    (note,) = (note for note in found.notes if "have not been verified" in note)
    assert (first.name in note, second.name in note) == (True, False)
    edit(second / "train.json", seconds=1.0)
    assert comparison(first, second).runs[1].report is None


def report_of(inputs: Any, *checks: Check) -> dict[str, Any]:
    spread = {"p5": 1.0, "median": 1.0, "p95": 1.0}
    numbers = (
        *("iterations", "consumed_samples", "consumed_tokens", "rows", "superseded_rows"),
        *("lost_iterations", "final_loss", "unigram_entropy", "parameters", "flops_per_token"),
        *("skipped_iterations", "attempts", "wall_seconds", "device_hours", "effective_share"),
        *("checkpoints", "checkpoint_bytes"),
    )
    parts = ("compute", "validation", "lost", "saving", "other", "between")
    nothing = ("train_iters", "validation_loss", "best_validation_loss", "peak_share", "tuning")
    rates = ("tokens_per_second", "tflops_per_second", "seconds_per_iteration")
    return {
        "kind": "report",
        "schema_version": 1,
        "experiment": EXPERIMENT,
        "key": "k",
        "verdict": "warnings",
        "summary": "",
        "checks": [check.model_dump() for check in checks],
        "headline": dict.fromkeys(numbers, 1)
        | dict.fromkeys(nothing)
        | dict.fromkeys(rates, spread)
        | {"time_budget": dict.fromkeys(parts, 0.0)},
        "inputs": {name: record.model_dump() for name, record in inputs.items()},
        "arguments": {},
    }


def test_a_run_that_has_not_finished_is_compared_too(here: Path) -> None:
    first = write_compared(here, spec=plain())
    second = write_compared(here, values={"lr": 2e-3}, spec=plain())
    (second / "train.json").unlink()
    edit(second / "attempts/001/attempt.json", status="running", finished=None)
    about = {"settings": {"lr": 5e-3}, "libraries": {"torch": "2.14.0"}, "code_commit": "abc"}
    (second / "attempts/001/about.json").write_text(json.dumps(about))
    found = comparison(first, second)
    assert [run.state for run in found.runs] == ["finished", "attempt 1 running"]
    assert [check.name for check in found.runs[1].warnings] == ["Finished"]
    assert settings_of(found)["lr"][0][1] == 5e-3
    assert environment_of(found)["torch"] == ["2.13.0", "2.14.0"]
    assert "device" not in environment_of(found), "what is not known is no difference"


def test_page_json_and_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_compared(here, spec=plain(seed=1))
    write_compared(here, experiment=OTHER, spec=plain(experiment=OTHER, seed=2))
    main([EXPERIMENT, OTHER, "--output", "compare.html"])
    text = capsys.readouterr().out
    assert text.rstrip().endswith("comparison: compare.html")
    assert re.search(r"^settings that differ +llama3_8B_tiny +llama2_7B_tiny +changes$", text, re.M)
    assert re.search(r"^rotary_base +.*train, export, evaluate, report$", text, re.M)
    assert re.search(r"^tokens per second +20,\d+ +20,\d+$", text, re.M)
    page = Page(Path("compare.html").read_text())
    assert page.open == []
    assert "script" not in page.tags
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4
    figures = Path("compare.html").read_text().partition("<svg")[2].rpartition("</svg>")[0]
    assert "var(--blue)" in figures
    assert not re.findall(r"#[0-9a-f]{6}\b", figures)
    said = ComparisonManifest.load("compare.json")
    assert said.throughput[0].words in page.text
    main([EXPERIMENT, OTHER, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(Path("compare.json").read_text())


def test_whatever_a_run_says_is_escaped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "</code><script>alert(1)</script>\x1b[2J"
    first = write_compared(here, spec=plain())
    write_compared(here, experiment=OTHER, spec=plain(experiment=OTHER))
    settings = json.loads((first / "train.json").read_text())["settings"]
    environment = json.loads((first / "train.json").read_text())["environment"]
    edit(first / "run.json", experiment=hostile)
    edit(
        first / "train.json",
        settings=settings | {"lr_decay_style": hostile, hostile: 1},
        environment=environment | {"device": hostile},
        warnings=[hostile],
    )
    main([str(first), OTHER, "--output", "compare.html"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    page = Page(Path("compare.html").read_text())
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "\x1b" not in comparison(first, OTHER).runs[0].label


def test_eight_runs_are_told_apart(here: Path) -> None:
    runs = [
        write_compared(
            here,
            values={"lr": (i + 1) * 1e-3},
            spec=plain(seed=i, tuning=False, train_iters=100, save_interval=100),
        )
        for i in range(8)
    ]
    main([*map(str, runs), "--output", "compare.html"])
    text = Path("compare.html").read_text()
    drawn = set(re.findall(r"stroke: (var\(--\w+\))", text)) - {
        f"var(--{name})" for name in ("line", "soft", "ink")
    }
    assert len(drawn) == 8
    assert len(ComparisonManifest.load("compare.json").throughput) == 7


def test_what_snakemake_is_told() -> None:
    config = {"runs": "a,b", "lr": 1}
    assert take(config, ["train_x"]) is None
    assert "runs" in config, "no experiment knows it, and that will be said"
    assert take(config, ["compare", "--config", "runs=a,b"]) == "a,b"
    assert config == {"lr": 1}
    assert names_in("a, b,") == ["a", "b"]
    assert names_in(["a", "b,c"]) == ["a", "b,c"]
    with pytest.raises(UserError, match="Fix: write runs=a,b"):
        names_in({"a": "b"})
    with pytest.raises(UserError, match="Fix: snakemake compare --config runs=a,b"):
        _ = Asked(None).name


def test_what_every_start_of_snakemake_imports_is_light() -> None:
    code = (
        "import sys, primus.reports.comparison.asked, primus.reports.comparison.find;"
        "sys.exit(len({'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_name_of_a_page_is_of_its_runs_and_their_order(here: Path) -> None:
    write_compared(here)
    other = write_compared(here, experiment=OTHER)
    there, back = Asked(f"{EXPERIMENT},{OTHER}"), Asked([OTHER, EXPERIMENT])
    assert re.fullmatch(rf"{EXPERIMENT}-vs-{OTHER}\.[0-9a-f]{{8}}", there.name)
    assert there.name.rpartition(".")[2] != back.name.rpartition(".")[2]
    before = there.state(there.name)
    with (other / "metrics.jsonl").open("a") as stream:
        stream.write("\n")
    assert there.state(there.name)[0] == before[0]
    assert there.state(there.name)[1] != before[1]
    with pytest.raises(UserError, match="is not of the runs"):
        there.directories("another")
    edit(other / "run.json", experiment="../../x")
    assert re.fullmatch(r"[\w.-]+", Asked([EXPERIMENT, str(other)]).name)
    assert RunIdentity.load(other / "run.json").experiment == "../../x"
