"""The commands for hardware that nobody has run yet are at least possible."""

from __future__ import annotations

import re
import shlex

import pytest
from config_root import REPOSITORY

from primus.config.arguments import overrides
from primus.config.load import load

PAGE = (REPOSITORY / "docs/hardware.md").read_text()
COMMANDS = re.findall(r"^snakemake (?:train|eval|ab)_.*$", PAGE, re.MULTILINE)


def test_there_is_a_command_for_each_section() -> None:
    sections = PAGE.split("\n## ")[1:]
    assert len(COMMANDS) >= len(sections) > 5
    assert all(re.search(r"^snakemake ", section, re.MULTILINE) for section in sections)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_resolves(command: str) -> None:
    _, target, option, *changes = shlex.split(command)
    assert option == "--config"
    kind, _, experiment = target.partition("_")
    settings = load(experiment, overrides(changes), root=REPOSITORY, stages=())
    assert settings.settings.platform != "cpu"
    tuning = PAGE.partition("## GEMM tuning")[2].partition("\n## ")[0]
    assert settings.settings.gemm_tuning.enabled == (command in tuning or kind == "ab")
