"""The recipe of an image installs what the first process inside asks for, and no torch."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from primus.container.inside import _NEEDED

ROOT = Path(__file__).resolve().parents[2]
# Of what is imported under another name than it is installed by.
_INSTALLED_AS = {"megatron.core": "megatron-core", "yaml": "pyyaml"}


def required() -> dict[str, str]:
    """Package and bound of every line."""
    lines = (ROOT / "containers/requirements.txt").read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9-]+)(.*)", line) for line in lines if not line.startswith("#")]
    return {match[1]: match[2] for match in found if match}


def test_it_installs_what_is_asked_for_but_torch() -> None:
    asked = {_INSTALLED_AS.get(name, name.replace("_", "-")) for name in _NEEDED}
    assert set(required()) == asked - {"torch"}


def test_its_bounds_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    # The base image's numpy stays: its other libraries were built for it.
    for name, bound in required().items():
        assert name == "numpy" or f"{name}{bound}" in project
