"""Each file under configs/ names the schema of its kind, which says what the loader says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml
from config_root import REPOSITORY

from primus.config.layers import Kind, check_layer
from primus.config.reference import SCHEMAS
from primus.config.schema.settings import Settings
from primus.config.yaml_file import Document

FILES = {
    kind: [
        path
        for path in sorted((REPOSITORY / SCHEMAS[kind]).parent.glob("*.yaml"))
        if path.name != "default.yaml"
    ]
    for kind in SCHEMAS
}
SHIPPED = [(kind, path) for kind, paths in FILES.items() for path in paths]


def schema_of(kind: str) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((REPOSITORY / SCHEMAS[kind]).read_text()))


def complaints(kind: str, values: dict[str, Any]) -> list[str]:
    """What an editor would underline."""
    validator = jsonschema.Draft7Validator(schema_of(kind))
    return [error.message for error in validator.iter_errors(values)]


def test_there_are_files_of_each_kind() -> None:
    assert all(FILES.values())


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_one(kind: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema_of(kind))


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_a_shipped_file_names_its_schema_and_keeps_to_it(kind: str, path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named
    assert (path.parent / named[1]).resolve() == REPOSITORY / SCHEMAS[kind]
    assert not complaints(kind, yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("kind", ["model", "hardware", "recipe"])
def test_a_schema_has_the_keys_that_the_loader_takes_in_such_a_file(kind: Kind) -> None:
    refused = set()
    for name in Settings.model_fields:
        layer = check_layer(kind, Document("file", values={name: None}))
        if any("belong" in p.why or "cannot be set" in p.why for p in layer.problems):
            refused.add(name)
    assert set(schema_of(kind)["properties"]) == set(Settings.model_fields) - refused


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("experiment", {"model": "m", "lrr": 1}, "'lrr' was unexpected"),
        ("experiment", {"lr": 1}, "'model' is a required property"),
        ("experiment", {"model": "m", "lr": -1}, "-1 is not valid under any"),
        (
            "experiment",
            {"model": "m", "gemm_tuning": {"budgetminutes": 1}},
            "'budgetminutes' was unexpected",
        ),
        ("model", {"hidden_size": 64, "lr": 1}, "'lr' was unexpected"),
        ("hardware", {"hidden_size": 64}, "'hidden_size' was unexpected"),
        ("recipe", {"model": "m"}, "'model' was unexpected"),
    ],
)
def test_a_mistake_is_underlined(kind: str, values: dict[str, Any], said: str) -> None:
    (complaint,) = complaints(kind, values)
    assert said in complaint


@pytest.mark.parametrize("kind", [kind for kind in SCHEMAS if kind != "sweep"])
def test_an_environment_variable_is_a_value(kind: str) -> None:
    number = {"model": "num_layers", "hardware": "nproc_per_node"}.get(kind, "train_iters")
    assert not complaints(
        kind, {"model": "m", number: "${N:8}"} if kind == "experiment" else {number: "${N:8}"}
    )
