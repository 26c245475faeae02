"""Frozen settings give a stage what it declared, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from primus.config.frozen import StageSettings
from primus.errors import ArtifactError


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    path = tmp_path / "train.json"
    StageSettings(
        stage="train",
        experiment="x",
        key="0123456789ab",
        identity={"lr": 1e-3, "gemm_tuning": {"enabled": True}},
        extent={"train_iters": 10},
        options={"log_interval": 5, "env": {"A": "1", "B": "2"}, "gemm_tuning": {"require": True}},
        upstream={"tune": "ba9876543210"},
    ).save(path)
    return path


def test_values_of_every_kind_are_read_under_one_name(frozen: Path) -> None:
    settings = StageSettings.load(frozen, "train")
    assert (settings.lr, settings.train_iters, settings.log_interval) == (1e-3, 10, 5)
    assert settings.gemm_tuning.enabled is True
    assert settings.gemm_tuning.require is True
    assert settings.env.as_dict() == {"A": "1", "B": "2"}


def test_options_replace_what_the_file_says(frozen: Path) -> None:
    options = {"log_interval": 1, "env": {"A": "3"}, "gemm_tuning": {"require": False}}
    settings = StageSettings.load(frozen, "train", options)
    assert settings.log_interval == 1
    assert settings.gemm_tuning.enabled is True
    assert settings.gemm_tuning.require is False
    assert settings.env.as_dict() == {"A": "3"}, "a variable that was removed does not linger"


def test_a_key_that_the_stage_does_not_declare(frozen: Path) -> None:
    settings = StageSettings.load(frozen, "train")
    with pytest.raises(AttributeError, match=r"stage train does not declare the key 'vocab_size'"):
        _ = settings.vocab_size
    with pytest.raises(AttributeError, match=r"stage train\.gemm_tuning does not declare"):
        _ = settings.gemm_tuning.coverage


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "settings", "schema_version": 9}'])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"s\.json: "):
        StageSettings.load(path, "train")


def test_the_settings_of_another_stage(frozen: Path) -> None:
    with pytest.raises(ArtifactError, match="of stage 'train', wanted version 1 of stage 'tune'"):
        StageSettings.load(frozen, "tune")
