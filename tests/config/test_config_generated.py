"""Files that are written from the schema are equal to it, and the shipped files are right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
from config_root import REPOSITORY

from primus.config import reference
from primus.config.load import experiments, load


@pytest.mark.parametrize(
    ("file", "command", "write"),
    [
        ("configs/default.yaml", "defaults", reference.defaults),
        ("docs/reference.md", "reference", reference.markdown),
        *(
            (file, f"schema {kind}", partial(reference.json_schema, kind))
            for kind, file in reference.SCHEMAS.items()
        ),
    ],
)
def test_generated_file(file: str, command: str, write: Callable[[], str]) -> None:
    current = (REPOSITORY / file).read_text()
    assert current == write(), f"run: python -m primus.config {command} > {file}"


@pytest.mark.parametrize("name", experiments(REPOSITORY))
def test_every_experiment_loads(name: str) -> None:
    load(name, root=REPOSITORY)


def test_the_dry_run_imports_nothing_heavy() -> None:
    code = (
        "import sys, primus.config.pipeline, primus.config.paths;"
        "sys.exit(len({'torch', 'transformers', 'megatron', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert result.stderr == b""
    assert result.returncode == 0
