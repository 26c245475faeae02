"""Sweeps: which points a file makes, what they share, mistakes, and how jobs find their point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_root import REPOSITORY, Root

from primus.config import reference
from primus.config.announce import Announcer
from primus.config.arguments import overrides
from primus.config.load import load
from primus.config.paths import artifact
from primus.config.pipeline import Pipeline, check_targets
from primus.config.schema.keys import STAGES
from primus.config.sweep import lines
from primus.config.sweep_names import sweeps, take
from primus.errors import ConfigError, RunConflictError, UserError

HEAD = "experiment: x\n"
GRID = HEAD + "grid:\n  lr: [1e-3, 2.0e-3]\n  global_batch_size: [8, 16]\n"


@pytest.fixture
def swept(root: Root) -> Root:
    (root.path / "configs/sweeps").mkdir()
    root.write(GRID, "configs/sweeps/s.yaml")
    return root


def labels(root: Root, text: str = "") -> list[str]:
    if text:
        root.write(text, "configs/sweeps/s.yaml")
    return [point.label for point, _ in Pipeline({}, root.path).sweep("s").points]


def test_a_grid_is_every_combination_and_points_are_combined_with_it(swept: Root) -> None:
    assert labels(swept) == [
        "lr=0.001 global_batch_size=8",
        "lr=0.001 global_batch_size=16",
        "lr=0.002 global_batch_size=8",
        "lr=0.002 global_batch_size=16",
    ]
    points = "points:\n  - {lr: 1e-3, hidden_size: 64}\n  - {lr: 2e-3}\n  - {}\n"
    assert labels(swept, HEAD + points) == ["lr=0.001 hidden_size=64", "lr=0.002", "as it is"]
    assert labels(swept, HEAD + points + "grid: {seed: [1, 2], train_iters: [40]}\n")[:3] == [
        "lr=0.001 hidden_size=64 seed=1",
        "lr=0.001 hidden_size=64 seed=2",
        "lr=0.002 seed=1",
    ], "what is the same in all tells no point from another"


@pytest.mark.parametrize(
    "text",
    ["grid: {gemm_tuning.budget_minutes: [0.2, 0.3]}", "points: [{gemm_tuning: {workers: 3}}]"],
)
def test_keys_in_groups(swept: Root, text: str) -> None:
    swept.write(HEAD + text, "configs/sweeps/s.yaml")
    planned = Pipeline({}, swept.path).sweep("s")
    (key,) = {key for point in planned.sweep.points for key in point.values}
    assert key.startswith("gemm_tuning.")
    for point, plan in planned.points:
        assert getattr(plan.settings.gemm_tuning, key[12:]) == point.values[key]


@pytest.mark.parametrize(
    ("values", "command_line"),
    [
        ("lr: 1e-3", ["lr=1e-3"]),
        ("gemm_tuning: {enabled: false}", ["gemm_tuning={enabled: false}"]),
        (
            "data_path: [corpus/*.txt], seq_length: 128",
            ["data_path=[corpus/*.txt]", "seq_length=128"],
        ),
        ("lr: '${LR:4e-3}'", ["lr=${LR:4e-3}"]),
    ],
)
def test_a_point_is_the_run_that_the_command_line_gives(
    swept: Root, values: str, command_line: list[str]
) -> None:
    swept.write(f"{HEAD}points: [{{{values}}}]\n", "configs/sweeps/s.yaml")
    (plan,) = Pipeline({}, swept.path).sweep("s").plans
    by_hand = Pipeline(overrides(command_line), swept.path).plan("x")
    assert plan.stages == by_hand.stages
    again = load("x", json.loads(json.dumps(plan.overrides)), root=swept.path)
    assert again.settings == plan.settings, "as the rule of the settings hands it on"


def test_points_share_what_their_keys_leave_alone(swept: Root) -> None:
    shared = {
        "lr: [1e-3, 2e-3, 4e-3]": ("tokenizer", "data", "samples", "shapes", "tune"),
        "hidden_size: [64, 128, 192]": ("tokenizer", "data", "samples"),
        "seq_length: [64, 128, 256]": ("tokenizer", "data"),
        "tokenizer_vocab_size: [512, 1024, 2048]": ("shapes", "tune"),
    }
    for grid, stages in shared.items():
        swept.write(f"{HEAD}grid: {{{grid}}}\n", "configs/sweeps/s.yaml")
        jobs = Pipeline({}, swept.path).sweep("s").jobs()
        assert {stage for stage, count in jobs.items() if count == 1} == set(stages), grid
        assert jobs["train"] == jobs["report"] == 3


def test_the_report_is_another_when_the_points_are(swept: Root) -> None:
    pages = {"": Pipeline({}, swept.path).sweep("s").page}
    assert pages[""].startswith("output/sweeps/s/")
    swept.write("# a comment\n" + GRID, "configs/sweeps/s.yaml")
    assert Pipeline({}, swept.path).sweep("s").page == pages[""]
    for edited in (GRID.replace("16", "32"), GRID.replace("[8, 16]", "[8]")):
        swept.write(edited, "configs/sweeps/s.yaml")
        pages[edited] = Pipeline({}, swept.path).sweep("s").page
    pages["extent"] = Pipeline({"train_iters": 20}, swept.path).sweep("s").page
    assert len(set(pages.values())) == 4
    with pytest.raises(RunConflictError, match=r"digest.*Fix: snakemake sweep_s"):
        Pipeline({}, swept.path).swept("s", "0" * 12)


# text after `experiment: x`, line, what is said
MISTAKES = [
    ("grid: {learning_rate: [1, 2]}", 2, "learning_rate: unknown key. Fix: "),
    ("grid:\n  lr: [1e-3]\n  gemm_tuning.budget_minute: [1]", 4, "gemm_tuning.budget_minutes?"),
    ("points: [{lrr: 1}]", 2, "points.0.lrr: unknown key. Fix: did you mean lr?"),
    ("grid: {lr: []}", 2, "grid.lr: is an empty list"),
    ("grid: {lr: 1e-3}", 2, "must be a list, also of one value. Fix: write [1e-3]"),
    ("grid: {}", 2, "grid: is empty"),
    ("grid: [lr]", 2, "must be a group of 'key: [values]' lines"),
    ("points: []", 2, "points = []: must be a list of at least one point"),
    ("points: [3]", 2, "points.0 = 3: must be a group of 'key: value' lines"),
    ("max_points: 3", None, "has no points. Fix: add 'grid:'"),
    ("grid: {experiment: [x, y]}", 2, "cannot be varied: a sweep is of one experiment"),
    ("grid: {lr: [1]}\npoints: [{lr: 2}]", 3, "stands under grid and under points"),
    ("points: [{gemm_tuning: {}, gemm_tuning.workers: 1}]", 2, "is a part of gemm_tuning, too"),
    ("gridd: {lr: [1]}\ngrid: {lr: [1]}", 2, "gridd: unknown key. Fix: did you mean grid?"),
    ("grid: {seed: [1, 2, 3]}\nmax_points: 2", 3, "makes 3 points, and at most 2 are allowed"),
    ("grid: {seed: [1]}\nmax_points: no", 3, "max_points = false: must be a whole number >= 1"),
    # Found by loading the points.
    (
        "grid: {lr: [1e-3, fast]}",
        2,
        'lr = "fast": must be a number (in the point lr=fast of ',
    ),
    ("points:\n  - {lr: 1}\n  - {lr: -1}", 4, "lr = -1: must be > 0.0 (in the point lr=-1 of "),
    (
        "grid:\n  seed: [1, 2]\n  global_batch_size: [16, 18]",
        4,
        "(in the point seed=1 global_batch_size=18 and 1 more of configs/sweeps/s.yaml)",
    ),
    (
        "grid: {model: [llama3_8B_tiny, llama3_8B_tin]}",
        2,
        "there is no configs/models/llama3_8B_tin",
    ),
    # Points that are one run.
    ("grid: {lr: [1e-3, 0.001]}", 2, "the points lr=0.001 and lr=0.001 are one run, "),
    ("grid: {log_interval: [1, 2]}", 2, "log_interval changes nothing of what is trained"),
    ("grid: {train_iters: [40, 80]}", 2, "they differ in how far that one run goes (train_iters)"),
]


@pytest.mark.parametrize(("text", "line", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_named_with_its_place(
    swept: Root, text: str, line: int | None, said: str
) -> None:
    swept.write(f"{HEAD}{text}\n", "configs/sweeps/s.yaml")
    with pytest.raises(ConfigError) as caught:
        Pipeline({}, swept.path).sweep("s")
    (problem,) = caught.value.problems
    assert said in str(problem)
    assert "Fix: " in str(problem)
    assert problem.file == "configs/sweeps/s.yaml" + (f":{line}" if line else "")


def test_a_mistake_of_the_experiment_names_the_point_too(swept: Root) -> None:
    swept.edit("micro_batch_size: 4", "micro_batch_size: 3")
    with pytest.raises(ConfigError) as caught:
        Pipeline({}, swept.path).sweep("s")
    files = {problem.file.partition(":")[0] for problem in caught.value.problems}
    assert files <= {"configs/x.yaml", "configs/sweeps/s.yaml"}
    assert all("(in the point lr=" in problem.why for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid: {lr: [1]}", "experiment: required key is missing"),
        ("experiment: y\ngrid: {lr: [1]}", 'experiment = "y": there is no such experiment'),
        ("experiment: x\n  grid: [", "not YAML"),
    ],
)
def test_a_sweep_without_its_experiment(swept: Root, text: str, said: str) -> None:
    swept.write(text, "configs/sweeps/s.yaml")
    with pytest.raises(ConfigError, match=said):
        Pipeline({}, swept.path).sweep("s")


def test_targets_that_name_no_sweep(swept: Root) -> None:
    swept.write(GRID, "configs/sweeps/x.yaml")
    names = sweeps(swept.path)
    assert names == ["s", "x"], "a sweep may be called as an experiment is"
    check_targets(["sweep_s", "sweep_x", "train_x"], ["x"], names)
    with pytest.raises(ConfigError, match=r'configs/sweeps: there is no sweep "y".*known: s, x'):
        check_targets(["sweep_y"], ["x", "y"], names)
    with pytest.raises(ConfigError, match=r'"y"\. Fix: start where configs/ is; this is /'):
        check_targets(["train_y"], [], [])


def test_the_command_line_adds_what_the_sweep_leaves_alone(swept: Root) -> None:
    planned = Pipeline({"seed": 5}, swept.path).sweep("s")
    assert {plan.settings.seed for plan in planned.plans} == {5}
    assert all(plan.overrides["seed"] == 5 for plan in planned.plans)
    with pytest.raises(ConfigError, match=r"--config: lr: configs/sweeps/s.yaml sets it"):
        Pipeline({"lr": 5e-3}, swept.path).sweep("s")


def test_a_job_finds_the_point_that_its_file_is_of(swept: Root) -> None:
    """It plans nothing: it has the path of a file, and the same configuration."""
    planned = Pipeline({}, swept.path).sweep("s")
    for named in ((), ("s",)):
        for _, plan in planned.points:
            for stage in STAGES:
                made = plan.stages[stage]
                found = Pipeline({}, swept.path, named).by_key(stage, made.owner, made.key)
                assert found.stages[stage] == made
                assert found.stages["tokenizer"].owner == plan.stages["tokenizer"].owner
                digest = Pipeline({}, swept.path, named).by_digest(stage, made.owner, made.digest)
                assert digest.stages[stage] == made
    with pytest.raises(RunConflictError, match="no experiment has key"):
        Pipeline({}, swept.path, ("s",)).by_key("train", "x", "0" * 12)


def test_a_job_is_of_the_sweep_that_it_is_told_of(swept: Root) -> None:
    """Two sweeps, and the experiment itself, want one run to go to different ends."""
    for name, iterations in (("a", 40), ("b", 80)):
        text = f"{HEAD}grid: {{lr: [3e-3, 4e-3], train_iters: [{iterations}]}}\n"
        swept.write(text, f"configs/sweeps/{name}.yaml")
    made = Pipeline({}, swept.path).plan("x").stages["train"]

    def found(*named: str) -> int:
        return Pipeline({}, swept.path, named).by_key("train", "x", made.key).settings.train_iters

    assert (found(), found("a"), found("b")) == (200, 40, 80)
    pipeline = Pipeline({}, swept.path)
    pipeline.sweep_target("a")
    with pytest.raises(UserError, match=r"are one run; .*train_iters=40 .*train_iters=80.*Fix: "):
        pipeline.sweep_target("b")
    with pytest.raises(UserError, match=r"train_x are one run"):
        pipeline.target("train", "x")


def test_a_broken_sweep_is_in_nobodys_way(swept: Root) -> None:
    swept.write("experiment: x\ngrid: {lr: []}\n", "configs/sweeps/a.yaml")
    made = Pipeline({"lr": 1e-3, "global_batch_size": 8}, swept.path).plan("x").stages["train"]
    assert Pipeline({}, swept.path).by_key("train", "x", made.key).settings.lr == 1e-3


def test_the_sweeps_of_a_job_are_no_key_of_an_experiment() -> None:
    config: dict[str, Any] = {"lr": 1, "sweep": "a,b"}
    assert take(config, ["train_x"]) == []
    assert "sweep" in config, "and so an unknown key"
    for words in (["output/runs/x/0/train.json"], ["--target-jobs", "train:experiment=x,key=0"]):
        config["sweep"] = "a,b"
        assert take(config, words) == ["a", "b"]
        assert config == {"lr": 1}


def test_a_dry_run_counts_jobs_and_hours(swept: Root, capsys: pytest.CaptureFixture[str]) -> None:
    planned = Pipeline({}, swept.path).sweep("s")
    head, jobs, hours = lines(planned, swept.path)
    assert head == "sweep s: 4 points of x, lr, global_batch_size varied"
    assert "1 tune, 4 train, 4 export, 4 report (points share tokenizer, data, samples," in jobs
    assert hours.startswith("device-hours of training: not known for 4 points: ")
    run = swept.path / Path(artifact(planned.plans[0].stages["train"])).parent
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"iteration": 50, "seconds_per_iteration": 36.0}\n')
    (_, _, hours) = lines(planned, swept.path / "output/runs")
    assert "about 3 for 1 point at the pace of runs like it; not known for 3 points" in hours
    (run / "metrics.jsonl").write_text('{"iteration": 200, "seconds_per_iteration": 36.0}\n')
    assert lines(planned, swept.path / "output/runs")[2].endswith("; 1 trained already")
    for words, said in ((["-n", "sweep_s"], True), (["--quiet", "sweep_s"], False)):
        announcer = Announcer(words)
        announcer.announce_sweep(planned, {})
        announcer.announce_sweep(planned, {})
        assert capsys.readouterr().err.count("sweep s: 4 points") == said


GROUPS = {"tokenizer": "text", "data": "text", "samples": "text"}
GROUPS |= {"export": "results", "report": "results"}


@pytest.mark.parametrize(
    ("grid", "text", "shapes"),
    [
        ("lr: [1e-3, 2e-3, 4e-3]", 1, 1),
        ("seq_length: [64, 128, 256]", 1, 3),
        ("tokenizer_vocab_size: [512, 1024, 2048]", 3, 1),
    ],
)
def test_jobs_of_a_cluster_are_counted_by_groups(
    swept: Root, grid: str, text: int, shapes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages that share a job at one point do at all points that share one of them."""
    swept.write(f"{HEAD}grid: {{{grid}}}\n", "configs/sweeps/s.yaml")
    planned = Pipeline({}, swept.path).sweep("s")
    jobs = {"text": text, "shapes": shapes, "tune": shapes, "train": 3, "results": 3}
    assert planned.submitted(GROUPS) == jobs
    Announcer(["--profile", "slurm", "-n", "sweep_s"]).announce_sweep(planned, GROUPS)
    total = sum(jobs.values())
    told = f"  submitted as {total} jobs of the cluster: {text} text (tokenizer, data, samples), "
    told += f"{shapes} shapes, {shapes} tune, 3 train, 3 results (export, report)"
    assert told in capsys.readouterr().err.splitlines()
    Announcer(["-n", "sweep_s"]).announce_sweep(planned, GROUPS)
    assert "submitted" not in capsys.readouterr().err


def test_hours_are_estimated_where_a_peak_is_known() -> None:
    planned = Pipeline({"hardware": "h100", "micro_batch_size": 2, "bf16": True}, REPOSITORY).sweep(
        "llama3_8B_tiny_lr"
    )
    assert "GPU-hours of training: about " in lines(planned)[2]
    assert "for 3 points estimated as in primus.plan" in lines(planned)[2]


@pytest.mark.parametrize("name", sweeps(REPOSITORY))
def test_every_sweep_loads(name: str) -> None:
    assert len(Pipeline({}, REPOSITORY).sweep(name, "train").plans) > 1


def test_the_editors_schema_knows_every_key(swept: Root) -> None:
    import jsonschema

    schema = json.loads(reference.json_schema("sweep"))
    check = jsonschema.Draft7Validator(schema)
    good = {"experiment": "x", "grid": {"lr": [1], "gemm_tuning.workers": [1, 2]}}
    assert not list(check.iter_errors(good | {"points": [{"seed": 1}], "max_points": 3}))
    wrong: list[Any] = [{"grid": {"lrr": [1]}}, {"grid": {"lr": []}}, {"points": [{"lrr": 1}]}]
    for values in (*wrong, {"gridd": {}}):
        assert list(check.iter_errors({"experiment": "x", "grid": {"lr": [1]}} | values))
