"""What is asked of an evaluation before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from config_root import Root

from primus.config.pipeline import Pipeline
from primus.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "key", "why", "fix"),
    [
        ({"stride": 257}, "evaluation.stride", "above the 256 tokens of a window", "at most 256"),
        (
            {"max_length": 64, "stride": 65},
            "evaluation.stride",
            "above the 64 tokens of a window",
            "at most 64, or null",
        ),
        ({"max_length": 513}, "evaluation.max_length", "max_position_embeddings 512", "most 512"),
        ({"texts": ["../a.txt"]}, "evaluation.texts.0", "climbs out", "absolute path"),
        ({"texts": ["none*.txt"]}, "evaluation.texts.0", "matches no file", "an existing file"),
        ({"texts": ["a" * 5000]}, "evaluation.texts.0", "matches no file", "an existing file"),
        ({"texts": ["configs/x.yaml"]}, "evaluation.texts.0", "no known kind of text", "known: "),
    ],
)
def test_a_mistake_is_named(
    root: Root, values: dict[str, Any], key: str, why: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Pipeline({"evaluation": values}, root.path).plan("x", "eval")
    (problem,) = caught.value.problems
    assert problem.key == key
    assert why in problem.why
    assert fix in problem.fix


def test_without_a_validation_share_text_has_to_be_named(root: Root) -> None:
    values = {"split": "99,0,1", "eval_iters": 0}
    with pytest.raises(ConfigError, match=r"evaluation.texts: is empty, and split 99,0,1"):
        Pipeline(values, root.path).plan("x", "eval")
    Pipeline(values | {"evaluation": {"texts": ["corpus/a.txt"]}}, root.path).plan("x", "eval")
    # Nobody else asks for it.
    Pipeline(values, root.path).plan("x", "train")
    Pipeline({"evaluation": {"texts": ["none.txt"]}}, root.path).plan("x", "train")


def test_the_report_depends_on_an_evaluation_that_is_asked_for_or_there(root: Root) -> None:
    pipeline = Pipeline({}, root.path)
    plan = pipeline.plan("x", "train")
    assert not pipeline.evaluates(plan, ["snakemake", "train_x", "eval_xy"])
    assert pipeline.evaluates(plan, ["snakemake", "train_x", "eval_x"])
    report, evaluation = pipeline.target("eval", "x")
    assert pipeline.evaluates(plan, ["another program"])
    pipeline = Pipeline({}, root.path)
    assert report.endswith("report.html")
    path = root.path / evaluation
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert pipeline.evaluates(plan, ["snakemake", "train_x"])


TASKS = {"lm_eval_tasks": ["mine"], "lm_eval_include_path": "tasks"}


@pytest.mark.parametrize("installed", [False, True])
def test_tasks_ask_for_their_library_and_their_directory(
    root: Root, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    found = object() if installed else None
    monkeypatch.setattr("primus.config.checks.evaluation.find_spec", lambda _: found)
    with pytest.raises(ConfigError) as caught:
        Pipeline({"evaluation": TASKS}, root.path).plan("x", "eval")
    problems = {problem.key: problem for problem in caught.value.problems}
    assert problems.pop("evaluation.lm_eval_include_path").why == "is no directory"
    assert installed != ("evaluation.lm_eval_tasks" in problems)
    for problem in problems.values():
        assert "pip install -e '.[lm-eval]'" in problem.fix
    # Nobody else asks for it.
    Pipeline({"evaluation": TASKS}, root.path).plan("x", "train")
    climbs = {"evaluation": {"lm_eval_include_path": "../tasks"}}
    with pytest.raises(ConfigError, match=r'lm_eval_include_path = "../tasks": climbs out'):
        Pipeline(climbs, root.path).plan("x", "train")


def test_files_of_ones_own_tasks_are_watched(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primus.config.checks.evaluation.find_spec", lambda _: object())
    (root.path / "tasks/more").mkdir(parents=True)
    for name in ("mine.yaml", "more/questions.jsonl"):
        (root.path / "tasks" / name).write_text("")
    pipeline = Pipeline({"evaluation": TASKS}, root.path)
    plan = pipeline.plan("x", "eval")
    assert pipeline.files(plan, "evaluate") == ["tasks/mine.yaml", "tasks/more/questions.jsonl"]
    (root.path / "tasks/{a}.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"has a brace in its name"):
        Pipeline({"evaluation": TASKS}, root.path).plan("x", "eval")
    without = Pipeline({"evaluation": {"lm_eval_include_path": "tasks"}}, root.path)
    assert without.files(without.plan("x", "eval"), "evaluate") == []


def test_files_of_an_evaluation_are_watched(root: Root) -> None:
    pipeline = Pipeline({"evaluation": {"texts": ["corpus/*.txt"]}}, root.path)
    assert pipeline.files(pipeline.plan("x", "eval"), "evaluate") == ["corpus/a.txt"]
