"""Read a YAML file of Primus with the files that it extends, and put environment values in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primus.config.merge import merge
from primus.config.problems import show
from primus.config.yaml_file import KeyPath, read_yaml, scalar
from primus.errors import ConfigError, Problem
from primus.hidden import is_secret_name

# `extends` is of 2026; the releases before it wrote `bases` or `includes` for the same.
INHERIT = ("extends", "bases", "includes")
_DEEPEST = 16
_VARIABLE = re.compile(r"\$\{([^:{}]+)(?::([^}]*))?\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Variable:
    """An environment variable that a file names.

    Attributes:
        given: the value is the environment's; otherwise it is the default in the file.
    """

    name: str
    value: str
    given: bool


@dataclass
class Source:
    """The content of a file and of those that it extends.

    Attributes:
        folder: name of the folder that the file lies in.
        values: as Primus would merge them, environment variables put in.
        places: `file:line` of each key by its path.
    """

    name: str
    folder: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line` of the key, or of the nearest group around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name


def mistake(where: str, key: str, why: str, fix: str, value: Any = ...) -> ConfigError:
    """One mistake in a file of Primus."""
    shown = "" if value is ... else show(value)
    return ConfigError([Problem(file=where, key=key, value=shown, why=why, fix=fix)])


def read_source(path: Path, environment: Mapping[str, str] | None = None) -> Source:
    """Read `path` and what it extends, later files over earlier ones, the file itself on top.

    Args:
        environment: in place of the process's own.

    Raises:
        ConfigError: a file is missing or no YAML mapping, extends itself, names a variable that
            has neither value nor default, or one that looks like a secret.
    """
    source = _read(path, ())
    values: Mapping[str, str] = os.environ if environment is None else environment
    source.values = {
        name: _substituted(value, (name,), source, values) for name, value in source.values.items()
    }
    return source


def _read(path: Path, above: tuple[Path, ...]) -> Source:
    name = path.name
    try:
        resolved = path.resolve()
        is_file = resolved.is_file()
    except (OSError, RuntimeError, ValueError):
        is_file = False
    if not is_file:
        raise mistake(name, "", "there is no such file", "name a YAML file of Primus")
    if resolved in above or len(above) >= _DEEPEST:
        raise mistake(name, "", "extends itself", "take it out of the files that it extends")
    document = read_yaml(resolved, name)
    if document.problems:
        raise ConfigError(document.problems)
    own = dict(document.values)
    source = Source(name, resolved.parent.name)
    for key in INHERIT:
        for base in _bases(own.pop(key, None), key, document.where((key,))):
            inherited = _read(path.parent / base, (*above, resolved))
            source.values = merge(source.values, inherited.values)
            source.places |= inherited.places
    source.values = merge(source.values, own)
    source.places |= {at: f"{name}:{line}" for at, line in document.lines.items()}
    return source


def _bases(value: Any, key: str, where: str) -> Iterator[str]:
    """The files that are extended, one name or a list of names."""
    for base in value if isinstance(value, list) else [value]:
        if base is None:
            continue
        if not isinstance(base, str) or not base:
            raise mistake(where, key, "must be a file's name, or a list of them", "mend it", value)
        yield base


def _substituted(value: Any, path: KeyPath, source: Source, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _substituted(v, (*path, k), source, environment) for k, v in value.items()}
    if isinstance(value, list):
        return [_substituted(v, (*path, str(i)), source, environment) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replacement(match: re.Match[str]) -> str:
        return _variable(match, path, source, environment)

    text = _VARIABLE.sub(replacement, value)
    return scalar(text) if text != value else value


def _variable(
    match: re.Match[str], path: KeyPath, source: Source, environment: Mapping[str, str]
) -> str:
    name, default = match.group(1), match.group(2)
    where, key = source.where(path), ".".join(path)
    if not _VARIABLE_NAME.fullmatch(name):
        fix = "write ${VAR} or ${VAR:default}"
        raise mistake(where, key, f"{show(match.group(0))} names no variable", fix)
    if is_secret_name(name):
        why = f"{name} looks like a secret, and every setting is written into files"
        raise mistake(where, key, why, "leave it in the environment only")
    if name not in environment and default is None:
        fix = f"export {name}=... or write ${{{name}:default}}"
        raise mistake(where, key, f"the environment has no variable {name}", fix)
    value = environment.get(name, default)
    source.variables[name] = Variable(name, value, name in environment)
    return value
