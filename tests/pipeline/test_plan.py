"""An edit re-runs exactly the stages that it affects."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest
import yaml
from project import EXPERIMENT, Project

# The first test waits for the whole pipeline to run.
pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]

TARGET = f"train_{EXPERIMENT}"
AFTER_TRAIN = {"train": 1, "export": 1, "report": 1}
AFTER_TUNE = {"tune": 1, **AFTER_TRAIN}
AFTER_SHAPES = {"shapes": 1, **AFTER_TUNE}

# (changed keys, what runs; `settings` counts the frozen files that are written)
EDITS = [
    pytest.param({"lr": 2.0e-3}, {"settings": 3, **AFTER_TRAIN}, id="lr"),
    pytest.param({"hidden_size": 64}, {"settings": 5, **AFTER_SHAPES}, id="hidden_size"),
    pytest.param(
        {"seq_length": 64}, {"settings": 6, "samples": 1, **AFTER_SHAPES}, id="seq_length"
    ),
    pytest.param({"micro_batch_size": 8}, {"settings": 5, **AFTER_SHAPES}, id="micro_batch_size"),
    pytest.param({"train_iters": 12}, {"settings": 1, **AFTER_TRAIN}, id="train_iters"),
    pytest.param(
        {"train_iters": 12, "lr_decay_iters": None},
        {"settings": 3, **AFTER_TRAIN},
        id="train_iters without lr_decay_iters",
    ),
    pytest.param({"log_interval": 3}, {}, id="log_interval"),
    pytest.param({"save_interval": 2, "eval_interval": 4}, {}, id="intervals"),
    pytest.param(
        {"gemm_tuning": {"budget_minutes": 0.1}}, {"settings": 4, **AFTER_TUNE}, id="budget"
    ),
    pytest.param(
        {"gemm_tuning": {"enabled": False}}, {"settings": 3, **AFTER_TRAIN}, id="tuning off"
    ),
    pytest.param({"seed": 4321}, {"settings": 4, "samples": 1, **AFTER_TRAIN}, id="seed"),
    pytest.param(
        {"tokenizer_vocab_size": 300},
        {"settings": 6, "tokenizer": 1, "data": 1, "samples": 1, **AFTER_TRAIN},
        id="tokenizer_vocab_size",
    ),
]


def test_nothing_to_be_done(project: Project) -> None:
    assert project.plan(TARGET) == {}


@pytest.mark.parametrize(("values", "expected"), EDITS)
def test_one_edit(project: Project, values: dict[str, Any], expected: dict[str, int]) -> None:
    original = project.file().read_text()
    project.set(values)
    assert project.plan(TARGET) == expected
    assert explained(project) == set(expected) - {"settings"}
    project.file().write_text(original)
    assert project.plan(TARGET) == {}, "a reverted edit costs nothing"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("lr=2e-3",), {"settings": 3, **AFTER_TRAIN}),
        (("train_iters=12",), {"settings": 1, **AFTER_TRAIN}),
        (("log_interval=3",), {}),
        (("lr=3e-3",), {}),
        (("gemm_tuning={budget_minutes: 0.1}",), {"settings": 4, **AFTER_TUNE}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_one_value_on_the_command_line(
    project: Project, arguments: tuple[str, ...], expected: dict[str, int]
) -> None:
    assert project.plan(TARGET, "--config", *arguments) == expected


def test_a_dry_run_names_the_changed_extent(project: Project) -> None:
    project.set({"train_iters": 12})
    result = project.snakemake("--dry-run", TARGET)
    output = result.stdout + result.stderr
    assert "train_iters=8" in output
    assert "train_iters=12" in output


def test_a_comment_and_the_order_of_keys(project: Project) -> None:
    values = project.values()
    text = yaml.safe_dump(dict(reversed(values.items())), sort_keys=False)
    project.file().write_text("# a comment\n" + text.replace("\n", "  # another\n"))
    assert project.plan(TARGET) == {}


def test_another_experiment(project: Project) -> None:
    project.set({"lr": 1.0e-5}, "llama3_8B")
    project.file("broken").write_text("no: such: thing")
    assert project.plan(TARGET) == {}


def test_a_new_experiment_with_the_same_data_and_shapes(project: Project) -> None:
    project.file("other").write_text(project.file().read_text())
    project.set({"lr": 1.0e-3}, "other")
    assert project.plan("train_other") == {"settings": 5, **AFTER_SHAPES}
    assert project.plan(TARGET) == {}


def test_without_the_metadata_of_snakemake(project: Project) -> None:
    """Hashed paths need no bookkeeping: a lost `.snakemake` loses no identity."""
    kept = project.path / ".snakemake"
    shutil.move(kept, project.path / "away")
    try:
        assert project.plan(TARGET) == {}
        project.set({"lr": 2.0e-3})
        assert project.plan(TARGET) == {"settings": 3, **AFTER_TRAIN}
    finally:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(project.path / "away", kept)


def test_an_extent_of_which_snakemake_has_no_record(project: Project) -> None:
    """A changed `train_iters` is seen without Snakemake's own record, or with a false one."""
    further = {"settings": 1, **AFTER_TRAIN}
    longer = ("--config", "train_iters=40")
    licensed = ("--config", "model_card={license: mit}")
    assert project.plan(TARGET, *longer, "--rerun-triggers", "mtime") == further
    kept = project.path / ".snakemake"
    shutil.copytree(kept, project.path / "away")
    try:
        touched = project.snakemake("--cores", "1", "--touch", TARGET, *longer)
        assert touched.returncode == 0, touched.stderr
        assert project.plan(TARGET, *longer) == further
        shutil.rmtree(kept)
        assert project.plan(TARGET, *longer) == further
        assert project.plan(TARGET, *licensed) == {"settings": 1, "export": 1, "report": 1}
        assert project.plan(TARGET) == {}
    finally:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(project.path / "away", kept)
    assert project.plan(TARGET) == {}


def test_a_real_run_is_compared_with_a_copy_of_it(project: Project) -> None:
    (run,) = (path.parent for path in project.path.glob("output/runs/*/*/train.json"))
    shutil.copytree(run, project.path / "copy", ignore=shutil.ignore_patterns("report.*", "ch*"))
    done = project.run("python", "-m", "primus.compare", EXPERIMENT, "copy", "--json")
    shutil.rmtree(project.path / "copy")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["settings"], found["environment"]) == ([], [])
    assert found["losses"][0]["equal_rows"] == 4
    assert [one["report"] in ("passed", "warnings") for one in found["runs"]] == [True, False]
    assert "frozen settings" not in " ".join(found["notes"]), "all of them are found, by their keys"


def test_new_text_is_seen(project: Project) -> None:
    added = project.path / "corpus/added.txt"
    added.write_text("A new file.\n")
    try:
        plan = project.plan(TARGET)
    finally:
        added.unlink()
    assert {"tokenizer", "data", "samples", "train"} <= set(plan)


def test_text_that_took_the_place_of_another_is_seen(project: Project) -> None:
    """As by `cp -p` or `rsync -a`: as large as the old one, and older than the tokens."""
    text = project.path / "corpus/persuasion.txt"
    content, times = text.read_bytes(), text.stat()
    try:
        text.write_bytes(content.replace(b"Elliot", b"Eliott"))
        os.utime(text, (1e9, 1e9))
        assert {"tokenizer", "data", "samples", "train"} <= set(project.plan(TARGET))
        text.write_bytes(content)
        assert project.plan(TARGET) == {}, "the time alone changes nothing"
    finally:
        text.write_bytes(content)
        os.utime(text, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_comparison_of_kernels_is_shown_and_asked_for_by_nobody_else(project: Project) -> None:
    asked = f"ab_{EXPERIMENT}"
    assert project.plan(asked) == {"ab": 1}
    (run,) = project.path.glob(f"output/runs/{EXPERIMENT}/*")
    path = project.path / f"output/ab/{EXPERIMENT}/{run.name}/ab.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    try:
        assert project.plan(TARGET) == {"report": 1}
        # Also where Snakemake is to look at the times of files alone.
        assert project.plan(TARGET, "--rerun-triggers", "mtime") == {"report": 1}
        # Going on with the run makes no other comparison necessary.
        further = {"settings": 1, **AFTER_TRAIN}
        assert project.plan(TARGET, "--config", "train_iters=12") == further
        # By its own word: of this file Snakemake has no record.
        found = {"rounds": 6, "warm_up_steps": 2, "steps_per_segment": 4}
        path.write_text(json.dumps(found))
        assert project.plan(asked) == {}
        path.write_text(json.dumps(found | {"rounds": 3}))
        assert project.plan(asked) == {"ab": 1}
        assert project.plan(asked, "--config", "ab={rounds: 3}") == {}
    finally:
        shutil.rmtree(project.path / "output/ab")
    assert project.plan(TARGET) == {}


def test_explain_names_the_key_and_what_it_means(project: Project) -> None:
    project.set({"lr": 2.0e-3, "log_interval": 3})
    text = explanation(project)
    assert "lr: 0.003 -> 0.002" in text
    assert "re-runs nothing: log_interval: 2 -> 3" in text
    assert [line.split()[0] for line in text.splitlines() if "would run" in line] == [
        "train",
        "export",
        "report",
    ]


def test_explain_says_whether_more_iterations_continue_the_run(project: Project) -> None:
    project.set({"train_iters": 12})
    assert "continues the run in output/runs/" in explanation(project)
    project.set({"lr_decay_iters": None})
    text = explanation(project)
    assert "a new run: the schedule's length follows train_iters" in text
    assert "lr_decay_iters: 8" in text


def explanation(project: Project, *arguments: str) -> str:
    result = project.run("python", "-m", "primus.explain", EXPERIMENT, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def explained(project: Project) -> set[str]:
    verdicts = json.loads(explanation(project, "--json"))
    return {verdict["stage"] for verdict in verdicts if verdict["would_run"]}
