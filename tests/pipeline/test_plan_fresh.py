"""What a dry run says before anything has run, and what it says about mistakes."""

from __future__ import annotations

import re
import subprocess

import pytest
from project import EXPERIMENT, Project

from primus.config.load import experiments
from primus.config.pipeline import CHECKS, TARGETS

pytestmark = pytest.mark.pipeline

EVERY_STAGE = ("tokenizer", "data", "samples", "shapes", "tune", "train", "export", "report")


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        (f"train_{EXPERIMENT}", EVERY_STAGE),
        (f"report_{EXPERIMENT}", EVERY_STAGE),
        (f"export_{EXPERIMENT}", EVERY_STAGE[:-1]),
        (f"eval_{EXPERIMENT}", (*EVERY_STAGE, "evaluate")),
        (f"ab_{EXPERIMENT}", (*EVERY_STAGE[:5], "ab")),
        (f"data_{EXPERIMENT}", EVERY_STAGE[:3]),
        (f"tune_{EXPERIMENT}", ("shapes", "tune")),
        (f"shapes_{EXPERIMENT}", ("shapes",)),
        ("train_llama3_8B", EVERY_STAGE),
        ("shapes_llama3_8B", ("shapes",)),
    ],
)
def test_the_whole_plan_shows_at_once(
    untouched: Project, target: str, stages: tuple[str, ...]
) -> None:
    assert untouched.plan(target) == {"settings": len(stages), **dict.fromkeys(stages, 1)}


def test_the_first_target_is_the_demo(untouched: Project) -> None:
    assert set(untouched.plan()) == {"settings", *EVERY_STAGE}


@pytest.mark.parametrize("option", ["--list-target-rules", "--lt", "--list-rules", "-l"])
def test_rules_of_every_experiment_are_listed(untouched: Project, option: str) -> None:
    result = untouched.snakemake(option)
    assert result.returncode == 0, result.stderr
    for name in experiments(untouched.path):
        listed = set(re.findall(rf"^(\w+)_{re.escape(name)} \(", result.stdout, re.MULTILINE))
        assert listed == {*TARGETS, *CHECKS}


def test_an_option_may_name_a_rule_of_another_experiment(untouched: Project) -> None:
    result = untouched.snakemake(
        "--dry-run", f"data_{EXPERIMENT}", "train_llama3_8B", "--until", "data_llama3_8B"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    asked = untouched.plan(f"data_{EXPERIMENT}", "train_llama3_8B", "--omit-from", "train")
    assert asked["shapes"] == 1
    assert "train" not in asked


def test_without_tuning_nothing_is_tuned(untouched: Project) -> None:
    plan = untouched.plan(f"train_{EXPERIMENT}", "--config", "gemm_tuning={enabled: false}")
    assert plan == {
        "settings": 6,
        **dict.fromkeys(("tokenizer", "data", "samples", "train", "export", "report"), 1),
    }


def test_a_second_config_is_not_forgotten(untouched: Project) -> None:
    target = f"train_{EXPERIMENT}"
    found = untouched.snakemake("-n", target, "--config", "lr=1e-3", "--config", "seed=5")
    (line,) = [line for line in errors(found) if line.startswith("error: ")]
    assert line.startswith("error: --config: is given more than once, ")


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr that are ours, after checking that there is nothing worse."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "Exception" not in result.stdout + result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_a_dry_run_of_a_training_says_once_what_it_takes(untouched: Project) -> None:
    result = untouched.snakemake("--dry-run", f"train_{EXPERIMENT}", f"report_{EXPERIMENT}")
    (line,) = (x for x in result.stderr.splitlines() if x.startswith(f"{EXPERIMENT}: "))
    assert "1.38M parameters; TP 1, PP 1, DP 2 on 2 ranks of cpu" in line
    assert "GiB per rank (weights " in line
    assert f"{EXPERIMENT}: " not in result.stdout
    silent = untouched.snakemake("--dry-run", f"data_{EXPERIMENT}")
    assert f"{EXPERIMENT}: " not in silent.stdout + silent.stderr


@pytest.mark.parametrize("mode", [("--dry-run",), ("--cores", "1")], ids=["dry run", "run"])
def test_mistakes_are_one_line_each_before_anything_runs(
    untouched: Project, mode: tuple[str, ...]
) -> None:
    untouched.set({"min_lr": 1.0, "dataset": "$(touch pwned)"})
    result = untouched.snakemake(*mode, f"train_{EXPERIMENT}", "--config", "lrr=1")
    found = [re.sub(r":\d+:", ":", line).partition(". Fix")[0] for line in errors(result)]
    assert found == [
        'error: configs/llama3_8B_tiny.yaml: dataset = "$(touch pwned)": is not a name: it '
        "becomes part of paths and commands",
        "error: --config: lrr = 1: unknown key",
        "error: configs/llama3_8B_tiny.yaml: min_lr = 1.0: is above lr 0.003",
    ]
    assert not (untouched.path / "pwned").exists()
    assert not (untouched.path / "output").exists()
    locks = untouched.path / ".snakemake/locks"
    assert not locks.exists() or not list(locks.iterdir())


def test_a_target_without_an_experiment(untouched: Project) -> None:
    result = untouched.snakemake("--dry-run", "train_llama3_8_tiny")
    assert errors(result) == [
        'error: configs: there is no experiment "llama3_8_tiny". Fix: did you mean llama3_8B_tiny?'
    ]


@pytest.mark.fault(
    40,
    injected="a config with Snakemake's own template switch",
    observed="nothing runs, one line",
)
def test_a_file_that_would_run_code(untouched: Project) -> None:
    untouched.file().write_text(
        "__use_yte__: true\nmodel: llama3_8B_tiny\n?__import__('os').system('touch pwned'): 1\n"
    )
    found = errors(untouched.snakemake("--dry-run", f"train_{EXPERIMENT}"))
    assert found[0].startswith(
        "error: configs/llama3_8B_tiny.yaml:1: __use_yte__ = true: executes Python code"
    )
    assert not (untouched.path / "pwned").exists()


def test_an_evaluation_is_a_job_between_those_of_export_and_report(untouched: Project) -> None:
    """It takes a GPU, so Snakemake may not put the other two into one job around it."""
    planned = untouched.plan("--profile", "profiles/slurm", f"eval_{EXPERIMENT}")
    assert [planned[stage] for stage in ("train", "export", "evaluate", "report")] == [1] * 4


def test_a_tuning_target_without_tuning(untouched: Project) -> None:
    untouched.set({"gemm_tuning": {"enabled": False}})
    result = untouched.snakemake("--dry-run", f"tune_{EXPERIMENT}")
    assert "gemm_tuning.enabled = false: the target asks for tuned kernels" in errors(result)[0]


def test_a_path_of_settings_that_changed(untouched: Project) -> None:
    result = untouched.snakemake("--dry-run", f"output/runs/{EXPERIMENT}/{'0' * 12}/train.json")
    assert "the configuration changed since that path was made" in errors(result)[0]


@pytest.mark.fault(
    40,
    injected="shell syntax in names of text files",
    observed="quoted",
)
def test_hostile_text_file_names_reach_no_shell(untouched: Project) -> None:
    text = untouched.path / "corpus/persuasion.txt"
    text.rename(text.with_name("a b;touch pwned;$(touch pwned)'\".txt"))
    untouched.make(f"data_{EXPERIMENT}", "--until", "tokenizer")
    assert list(untouched.path.glob("output/tokenizer/demo/*/manifest.json"))
    assert not (untouched.path / "pwned").exists()
