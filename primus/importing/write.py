"""Write an imported experiment as this project's YAML, checked before it is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from primus.config.layers import FOLDERS, is_name
from primus.config.load import load
from primus.config.problems import NOT_A_NAME
from primus.config.schema.keys import Keys
from primus.config.schema.settings import Settings
from primus.errors import ConfigError, UserError
from primus.files import atomic_write
from primus.importing.convert import Row
from primus.importing.experiment import Imported
from primus.importing.source import mistake


class NotWritten(UserError):
    """The file exists already, or its directory cannot be written."""


def target(output: Path) -> tuple[Path, str]:
    """Root of the project and name of the experiment, from `configs/NAME.yaml` below it.

    Raises:
        ConfigError: the path is not of that form.
    """
    root, name = output.parent.parent, output.stem
    fix = "write --output configs/NAME.yaml"
    if output.suffix != ".yaml" or output.parent.name != "configs":
        raise mistake("--output", "", "experiments lie in configs/", fix, str(output))
    if not is_name(name):
        raise mistake("--output", "", NOT_A_NAME[0], fix, str(output))
    return root, name


def text_of(values: Mapping[str, Any], comments: Sequence[str], schema: str) -> str:
    """A YAML file: keys in the order of the schema, a blank line between its groups."""
    lines = [f"# yaml-language-server: $schema={schema}", *(f"# {text}" for text in comments)]
    seen: set[str] = set()
    for group in _groups():
        names = [name for name in group if name in values and name not in seen]
        seen.update(names)
        if names:
            lines += ["", *(_line(name, values[name]) for name in names)]
    lines += [_line(name, value) for name, value in values.items() if name not in seen]
    return "\n".join(lines) + "\n"


def _groups() -> Iterator[list[str]]:
    """Names of the keys, group by group, the experiment's own first."""
    yield ["model", "hardware"]
    for group in reversed(Settings.__mro__):
        if issubclass(group, Keys):
            yield list(vars(group).get("__annotations__", {}))


def _line(name: str, value: Any) -> str:
    style = None if isinstance(value, dict | list) else False
    dumped = yaml.safe_dump({name: value}, default_flow_style=style, width=10**9, sort_keys=False)
    return str(dumped).rstrip("\n")


def comments_of(made: Imported, origin: str) -> list[str]:
    """Where the file comes from, and every key that was refused."""
    comments = [f"From {json.dumps(origin)} of Primus, by python -m primus.import_config."]
    if made.refused:
        comments.append("Not taken over, because nothing here answers to it:")
        comments += [
            f"  {json.dumps(row.key)}: {json.dumps(row.value, default=str)} ({row.status})"
            for row in made.refused
        ]
    return comments


def check(made: Imported, experiment: str, architecture: str | None, root: Path) -> None:
    """Load the experiment as the pipeline will, from a copy of the root's configs/.

    Raises:
        ConfigError: what is wrong, with the line in Primus' file that the value comes from.
    """
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for folder in FOLDERS.values():
            (copy / folder).mkdir(parents=True)
            for file in (root / folder).glob("*.yaml"):
                (copy / folder / file.name).symlink_to(file.resolve())
        (copy / f"configs/{made.name}.yaml").write_text(experiment, encoding="utf-8")
        if architecture is not None:
            (copy / f"{FOLDERS['model']}/{made.model}.yaml").write_text(
                architecture, encoding="utf-8"
            )
        try:
            load(made.name, root=copy, stages=())
        except ConfigError as error:
            raise ConfigError(_traced(error, made.rows)) from None


def _traced(error: ConfigError, rows: Sequence[Row]) -> list[Any]:
    """The problems, each at the place in Primus' file where its key's value comes from."""
    origin = {key: row.where for row in rows for key in row.to}
    found = []
    for problem in error.problems:
        key = problem.key.split(".")[0]
        file = origin.get(key) or problem.file.rpartition(":")[0] or problem.file
        found.append(replace(problem, file=file))
    return found


def write(path: Path, text: str, force: bool) -> None:
    """Write a file that does not exist yet.

    Raises:
        NotWritten: it exists and `force` is false, or it cannot be written.
    """
    if path.exists() and not force:
        raise NotWritten(f"{path} exists. Fix: name another with --output, or add --force")
    try:
        with atomic_write(path) as stream:
            stream.write(text)
    except OSError as error:
        why = error.strerror or "unknown"
        raise NotWritten(
            f"{path} cannot be written: {why}. Fix: make its folder writable"
        ) from None
