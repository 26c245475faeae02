"""Read an experiment file of AMD's Primus and write ours.

Says what became of every key: mapped, changed, assumed (from what Primus lays under it), dropped
with the reason, not supported, or unknown. With the last two nothing is written, unless
--allow-unknown; they then stand in the file as comments.

Examples:
    python -m primus.import_config llama2_70B-pretrain.yaml --output configs/my_llama2_70B.yaml
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primus.command_line import Command
from primus.config.arguments import add_config_argument, overrides
from primus.config.layers import FOLDERS
from primus.config.problems import show
from primus.config.values import from_command_line
from primus.errors import ConfigError, Problem, run_main
from primus.importing.convert import Row
from primus.importing.experiment import Imported, check_given, import_experiment
from primus.importing.write import check, comments_of, target, text_of, write

_TITLES = {
    "mapped": "mapped",
    "changed": "changed",
    "assumed": "assumed",
    "given": "given with --config",
    "dropped": "dropped",
    "unsupported": "not supported",
    "unknown": "unknown",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Import one file."""
    args = command_parser().parse_args(argv)
    root, name = target(args.output) if args.output else (Path(), None)
    given = from_command_line(overrides(args.config))
    check_given(given)
    made = import_experiment(args.file, root, given, name)
    experiment = text_of(made.values, comments_of(made, args.file.name), "schema.json")
    architecture = None
    if made.architecture is not None:
        comments = [f"From {made.model}.yaml of Primus, by python -m primus.import_config."]
        architecture = text_of(made.architecture, comments, "schema.json")
    path = root / f"configs/{made.name}.yaml"
    print(_json(made, path) if args.json else _report(made, path, args.file.name))
    if made.refused and not args.allow_unknown:
        raise ConfigError([_problem(row) for row in made.refused])
    check(made, experiment, architecture, root)
    write(path, experiment, args.force)
    if architecture is not None:
        write(root / f"{FOLDERS['model']}/{made.model}.yaml", architecture, args.force)


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.import_config", __doc__)
    parser.add_argument("file", type=Path, help="experiment file of Primus")
    parser.add_argument("--output", type=Path, help="default: configs/<exp_name>.yaml")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--allow-unknown",
        action="store_true",
        help="write although keys are not supported or unknown; they become comments",
    )
    add_config_argument(parser)
    return parser


def _problem(row: Row) -> Problem:
    fix = "take the line out, or keep it as a comment with --allow-unknown"
    value = "" if row.value is None else show(row.value)
    return Problem(file=row.where, key=row.key, value=value, why=row.reason, fix=fix)


def _json(made: Imported, path: Path) -> str:
    content = {
        "experiment": made.name,
        "model": made.model,
        "output": str(path),
        "keys": [asdict(row) for row in made.rows],
        "environment": [asdict(variable) for variable in made.variables.values()],
        "warnings": made.warnings,
        "values": made.values,
        "architecture": made.architecture,
    }
    return json.dumps(content, indent=2)


def _report(made: Imported, path: Path, origin: str) -> str:
    lines = [f"{origin} -> {path}"]
    for status, title in _TITLES.items():
        rows = [row for row in made.rows if row.status == status]
        if rows:
            lines += ["", f"{title} ({len(rows)})", *(f"  {_line(row)}" for row in rows)]
    if made.variables:
        lines += ["", "environment"]
        for variable in made.variables.values():
            whence = "environment" if variable.given else "default in the file"
            lines.append(f"  {variable.name} = {show(variable.value)} ({whence})")
    if made.warnings:
        lines += ["", "warnings", *(f"  {text}" for text in made.warnings)]
    return "\n".join(lines)


def _line(row: Row) -> str:
    new: dict[str, Any] = {} if row.to == {row.key: row.value} else row.to
    arrow = (
        " -> " + ", ".join(f"{key} = {show(value)}" for key, value in new.items()) if new else ""
    )
    reason = f": {row.reason}" if row.reason else ""
    return f"{row.key} = {show(row.value)}{arrow}{reason}"


if __name__ == "__main__":
    run_main(main)
