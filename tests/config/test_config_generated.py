"""Files that are written from the schema are equal to it, and the shipped files are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml
from config_root import REPOSITORY

from primus.config import reference
from primus.config.load import experiments, load


@pytest.mark.parametrize(
    ("file", "command", "write"),
    [
        ("configs/default.yaml", "defaults", reference.defaults),
        ("configs/schema.json", "schema", reference.json_schema),
        ("docs/reference.md", "reference", reference.markdown),
    ],
)
def test_generated_file(file: str, command: str, write: object) -> None:
    assert callable(write)
    current = (REPOSITORY / file).read_text()
    assert current == write(), f"run: python -m primus.config {command} > {file}"


@pytest.mark.parametrize("name", experiments(REPOSITORY))
def test_every_experiment_loads(name: str) -> None:
    load(name, root=REPOSITORY)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=str)
def test_every_file_names_the_editors_schema(file: object) -> None:
    from pathlib import Path

    assert isinstance(file, Path)
    if file.name == "default.yaml":
        return
    first = file.read_text().splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match
    schema = json.loads((file.parent / match.group(1)).read_text())
    values = yaml.safe_load(file.read_text())
    assert set(values) <= set(schema["properties"])


def test_the_dry_run_imports_nothing_heavy() -> None:
    code = (
        "import sys, primus.config.pipeline, primus.config.paths;"
        "sys.exit(len({'torch', 'transformers', 'megatron', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert result.stderr == b""
    assert result.returncode == 0
