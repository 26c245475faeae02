"""Values as people give them: `${VAR}` in a file, text on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from primus.config.fields import alternatives, field_at, holds_text
from primus.config.yaml_file import KeyPath, parse_yaml, scalar
from primus.errors import ConfigError, Problem
from primus.hidden import is_secret_name

_VARIABLE = re.compile(r"\$\{([^}:]*)(?::([^}]*))?\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")

# Called with the path of the key, why it is wrong, and the fix.
Complain = Callable[[KeyPath, str, str], None]


def substitute(values: Mapping[str, Any], complain: Complain) -> dict[str, Any]:
    """Replace `${VAR}` and `${VAR:default}` by the environment, typed as the key needs it."""
    return {name: _substituted(value, (name,), complain) for name, value in values.items()}


def _substituted(value: Any, path: KeyPath, complain: Complain) -> Any:
    if isinstance(value, dict):
        return {k: _substituted(v, (*path, k), complain) for k, v in value.items()}
    if isinstance(value, list):
        return [_substituted(v, (*path, str(i)), complain) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replacement(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if not _VARIABLE_NAME.fullmatch(name):
            complain(path, f"{match.group(0)} names no variable", "write ${VAR} or ${VAR:default}")
        elif is_secret_name(name):
            why = f"{name} looks like a secret, and every setting is written into files"
            complain(path, why, "leave it in the environment only; the stages read it there")
        elif name in os.environ:
            return os.environ[name]
        elif default is None:
            fix = f"export {name}=... or write ${{{name}:default}}"
            complain(path, f"the environment has no variable {name}", fix)
        return default or ""

    return typed(_VARIABLE.sub(replacement, value), path)


def typed(text: str, path: KeyPath) -> Any:
    """`text` as the key at `path` needs it: text where text is allowed, else a YAML scalar.

    Unlike in a file, `1e-4` is a number here: there is no way to write it otherwise by hand.
    """
    field = field_at(path)
    if field is None or not _is_scalar(field.annotation):
        return text
    if holds_text(field.annotation):
        nullable = type(None) in alternatives(field.annotation)
        return None if nullable and text in ("null", "~", "") else text
    value = scalar(text)
    if isinstance(value, str) and float in alternatives(field.annotation):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_scalar(annotation: Any) -> bool:
    scalars = (str, int, float, bool, type(None))
    return holds_text(annotation) or all(part in scalars for part in alternatives(annotation))


def from_command_line(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Snakemake's `--config` hands them over, typed as their keys need them.

    Snakemake reads int, float and bool by itself, also within quotes, and lists and groups with
    every leaf as text. So a whole number may be meant as text; of another number nobody knows what
    was typed.
    A dotted name (`gemm_tuning.budget_minutes`) stands for a group.

    Raises:
        ConfigError: a name stands for a value and for a group.
    """
    values: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *groups, name = dotted.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                why = f"is given as a value, and {dotted} makes it a group"
                raise ConfigError(
                    [Problem(file="--config", key=group, value="", why=why, fix="keep one of them")]
                )
        inner[name] = _from_text(value, (*groups, name))
    return values


def _from_text(value: Any, path: KeyPath) -> Any:
    if isinstance(value, dict):
        return {str(name): _from_text(inner, (*path, str(name))) for name, inner in value.items()}
    if isinstance(value, str) and value[:1] in ("{", "["):
        document = parse_yaml(f"value: {value}", "--config")
        if not document.problems:
            return _from_text(document.values["value"], path)
    if isinstance(value, int) and not isinstance(value, bool) and _is_only_text(path):
        return str(value)
    return typed(value, path) if isinstance(value, str) else value


def _is_only_text(path: KeyPath) -> bool:
    field = field_at(path)
    if field is None or not holds_text(field.annotation):
        return False
    return not {int, float} & {*alternatives(field.annotation)}
