"""The reproduce command: what it asks for resolves to the identity of the run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_run import write_run

from primus.config.identity import closure, identities
from primus.config.load import load
from primus.reports.inputs import Inputs, StageValues, read_inputs
from primus.reports.reproduce import reproduction

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "llama3_8B_tiny"


def run_with(tmp_path: Path, overrides: dict[str, Any], **train: Any) -> Inputs:
    """A run whose settings are those of the real experiment with overrides."""
    settings = load(EXPERIMENT, overrides, root=ROOT, stages=()).settings
    stages = identities(settings)
    frozen = [
        StageValues(
            stage=name,
            key=stages[name].key,
            identity=dict(stages[name].identity),
            extent=dict(stages[name].extent),
            options=dict(stages[name].options),
        )
        for name in closure(settings, "report")
    ]
    inputs = read_inputs(write_run(tmp_path))
    made = {"key": stages["train"].key, "iteration": settings.train_iters}
    manifest = inputs.train.model_copy(update=made | train)
    return replace(inputs, train=manifest, settings=frozen)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"lr": 2e-3},
        {"train_iters": 77},
        {"seed": 5, "gemm_tuning": {"budget_minutes": 2.0}, "lr_decay_style": "linear"},
        {"gemm_tuning": {"enabled": False}},
        {"hidden_size": 64, "ffn_hidden_size": 192, "num_attention_heads": 2},
    ],
)
def test_the_command_resolves_to_the_identity_of_the_run(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    inputs = run_with(tmp_path, overrides)
    found = reproduction(inputs, ROOT)
    assert found.caveat == ""
    words = shlex.split(found.commands[-1])
    assert words[:2] == ["snakemake", f"train_{EXPERIMENT}"]
    assert {word.split("=")[0] for word in words[3:]} == set(overrides)
    typed = dict(word.split("=", 1) for word in words[3:])
    values = {
        name: text if isinstance(overrides[name], str) else json.loads(text)
        for name, text in typed.items()
    }
    again = load(EXPERIMENT, values, root=ROOT, stages=()).settings
    assert identities(again)["train"].key == inputs.train.key


@pytest.mark.parametrize(("iteration", "asked"), [(160, " --config train_iters=160"), (120, "")])
def test_the_command_goes_as_far_as_the_run_did(tmp_path: Path, iteration: int, asked: str) -> None:
    """Of a run that went further before train_iters was lowered again."""
    inputs = run_with(tmp_path, {}, iteration=iteration)
    found = reproduction(inputs, ROOT)
    assert found.commands[-1] == f"snakemake train_{EXPERIMENT}{asked}"


def test_it_says_when_the_files_no_longer_give_the_run(tmp_path: Path) -> None:
    inputs = run_with(tmp_path, {}, key="another")
    assert "another identity" in reproduction(inputs, ROOT).caveat
    nowhere = reproduction(inputs, tmp_path)
    assert f"configs/{EXPERIMENT}.yaml does not give this run" in nowhere.caveat
    assert nowhere.commands[-1] == f"snakemake train_{EXPERIMENT}"


def test_uncommitted_code_is_said(tmp_path: Path) -> None:
    inputs = run_with(tmp_path, {})
    environment = inputs.train.environment.model_copy(update={"code_dirty": True})
    dirty = replace(inputs, train=inputs.train.model_copy(update={"environment": environment}))
    assert "uncommitted changes" in reproduction(dirty, ROOT).caveat
