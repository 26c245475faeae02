"""ab_<experiment> before anything runs: what it needs, asks for, and where it is refused."""

from __future__ import annotations

import pytest
from config_root import Root

from primus.config.paths import ab
from primus.config.pipeline import Pipeline
from primus.errors import ConfigError


def test_it_needs_what_the_training_needs_and_makes_one_file_beside_no_run(root: Root) -> None:
    pipeline = Pipeline({}, root.path)
    plan = pipeline.plan("x", "ab")
    assert plan.stages_of("ab") == ["tokenizer", "data", "samples", "shapes", "tune"]
    (made,) = pipeline.target("ab", "x")
    assert made == ab(plan.stages["train"]) == f"output/ab/x/{plan.stages['train'].key}/ab.json"


def test_its_keys_change_no_run(root: Root) -> None:
    plain = Pipeline({}, root.path).plan("x", "train")
    keys = {"rounds": 9, "warm_up_steps": 3, "steps_per_segment": 8, "minutes": 5.0}
    changed = Pipeline({"ab": keys}, root.path).plan("x", "train")
    assert plain.stages == changed.stages


def test_without_tuning_it_is_refused_in_one_line(root: Root) -> None:
    pipeline = Pipeline({"gemm_tuning": {"enabled": False}}, root.path)
    with pytest.raises(ConfigError) as caught:
        pipeline.target("ab", "x")
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("gemm_tuning.enabled", "false")
    assert "\n" not in str(problem)
    assert problem.fix == "write true, or ask for another target"
    Pipeline({"gemm_tuning": {"enabled": False}}, root.path).target("train", "x")


def test_it_asks_for_what_the_training_asks_for_a_short_time(root: Root) -> None:
    plan = Pipeline({"ab": {"minutes": 12.5}, "slurm": {"time": 900}}, root.path).plan("x", "ab")
    asked, training = plan.ab_resources(), plan.resources("train")
    assert asked["runtime"] == 18
    assert training["runtime"] == 900
    assert {**asked, "runtime": 900} == training
    short = Pipeline({"slurm": {"time": 30}}, root.path).plan("x", "ab")
    assert short.ab_resources()["runtime"] == 30, "no more than the partition gives a training"


def test_a_report_takes_it_where_it_is_there(root: Root) -> None:
    pipeline = Pipeline({}, root.path)
    plan = pipeline.plan("x", "train")
    assert pipeline.compared(plan) == []
    path = root.path / ab(plan.stages["train"])
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert pipeline.compared(plan) == [ab(plan.stages["train"])]
