"""The files behind an experiment, each read and checked for itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from primus.config import problems, values
from primus.config.fields import home_of
from primus.config.machine import UnknownDevice, detect_hardware
from primus.config.schema.keys import NAME_PATTERN
from primus.config.schema.settings import Settings
from primus.config.yaml_file import Document, KeyPath, read_yaml
from primus.errors import Problem
from primus.hidden import is_secret_name

Kind = Literal["model", "hardware", "recipe", "experiment", "command line"]
FOLDERS = {
    "model": "configs/models",
    "hardware": "configs/hardware",
    "recipe": "configs/recipes",
}
COMMAND_LINE = "--config"
DEFAULT_FILE = "default"
_NAME = re.compile(NAME_PATTERN)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass
class Layer:
    """One source of values.

    Attributes:
        values: what it says, environment variables put in.
        wrong: top-level keys whose values cannot be used.
    """

    kind: Kind
    document: Document
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    def complain(self, path: KeyPath, why: str, fix: str, value: Any = ...) -> None:
        """Note a mistake of the key at `path`."""
        shown = "" if value is ... else problems.show(value)
        where = self.document.where(path)
        self.problems.append(Problem(file=where, key=".".join(path), value=shown, why=why, fix=fix))
        self.wrong.add(path[0])


def is_name(text: object) -> bool:
    """Whether `text` may become part of a path."""
    return isinstance(text, str) and bool(_NAME.match(text)) and not text.endswith("\n")


def names_in(directory: Path) -> list[str]:
    """Names of the YAML files in a directory."""
    found = (path.stem for path in directory.glob("*.yaml") if not path.name.startswith("."))
    return sorted(name for name in found if name != DEFAULT_FILE)


def read_layer(kind: Kind, name: str, root: Path) -> Layer:
    """Read `configs/[models/|hardware/|recipes/]<name>.yaml`."""
    folder = FOLDERS.get(kind, "configs")
    file = f"{folder}/{name}.yaml"
    if not is_name(name) or name not in names_in(root / folder):
        layer = Layer(kind, Document(file if is_name(name) else folder, broken=True))
        known = names_in(root / folder)
        why = f"there is no {kind} {problems.show(name)}"
        near = problems.did_you_mean(name, known)
        fix = near or f"known: {problems.listed(known)}"
        problem = Problem(file=layer.document.name, key="", value="", why=why, fix=fix)
        layer.problems.append(problem)
        return layer
    return check_layer(kind, read_yaml(root / file, file))


def command_line_layer(overrides: Mapping[str, Any]) -> Layer:
    """The values given with `--config`."""
    document = Document(COMMAND_LINE, values=values.from_command_line(overrides))
    return check_layer("command line", document)


def check_layer(kind: Kind, document: Document) -> Layer:
    """Check every key and value of a document; missing keys are no matter here."""
    layer = Layer(kind, document, problems=list(document.problems))
    if document.broken:
        return layer
    layer.values = values.substitute(document.values, layer.complain)
    _check_homes(layer)
    _check_secrets(layer)
    _check_text(layer, layer.values, ())
    usable = {k: v for k, v in layer.values.items() if k not in layer.wrong}
    try:
        Settings.model_validate(usable)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            path = tuple(str(part) for part in detail["loc"])
            if detail["type"] == "missing":
                continue
            why, fix = problems.explain(detail, path)
            if kind == "command line" and fix.startswith(problems.IN_QUOTES):
                fix = f"Snakemake reads a number here, also in quotes; {fix}, into the file"
            layer.complain(path, why, fix, detail["input"])
    layer.values = {k: v for k, v in layer.values.items() if k not in layer.wrong}
    layer.problems.sort(key=_line)
    return layer


def _line(problem: Problem) -> int:
    digits = problem.file.rpartition(":")[2]
    return int(digits) if digits.isdigit() else 0


def _check_homes(layer: Layer) -> None:
    """Refuse keys that are valid, but not in this kind of file."""
    for name, value in layer.values.items():
        if name == "experiment":
            fix = "remove it; the file's name is the experiment's name"
            layer.complain((name,), "cannot be set", fix, value)
        elif layer.kind == "recipe" and name in FOLDERS:
            why = "does not belong in a recipe file"
            layer.complain((name,), why, "move it to configs/<experiment>.yaml", value)
        elif layer.kind in ("model", "hardware") and name in Settings.model_fields:
            home = home_of(name)
            if home == layer.kind:
                continue
            place = "configs/hardware/<name>.yaml or " if home == "hardware" else ""
            place += "configs/models/<model>.yaml or " if home == "model" else ""
            why = f"does not belong in a {layer.kind} file"
            layer.complain((name,), why, f"move it to {place}configs/<experiment>.yaml", value)


def _check_secrets(layer: Layer) -> None:
    environment = layer.values.get("env")
    for name in environment if isinstance(environment, dict) else ():
        if is_secret_name(str(name)):
            why = "looks like a secret, and every setting is written into files"
            fix = "remove the line; export it before the run, ranks inherit the environment"
            layer.complain(("env", str(name)), why, fix)


def _check_text(layer: Layer, value: Any, path: KeyPath) -> None:
    """Refuse characters that no command line, file name or line of a log can hold."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_text(layer, str(name), (*path, str(name)))
            _check_text(layer, inner, (*path, str(name)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_text(layer, inner, (*path, str(number)))
    elif isinstance(value, str) and _CONTROL.search(value):
        why = "holds a control character or half of a surrogate pair"
        layer.complain(path, why, "write it without", value)


def resolve_hardware(layer: Layer, known: list[str]) -> str | None:
    """The name behind `hardware: auto`; a `Problem` of `layer` where the device is not known."""
    try:
        return detect_hardware()
    except UnknownDevice as error:
        why = f"this machine has a device that no file describes: {error}"
        fix = (
            f"name the nearest one of {problems.listed(known)}, or add configs/hardware/<name>.yaml"
        )
        layer.complain(("hardware",), why, fix, "auto")
        return None
