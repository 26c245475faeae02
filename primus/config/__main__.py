"""Resolve, check, freeze and document the configuration.

Examples:
    python -m primus.config show llama3_8B --config lr=2e-4
    python -m primus.config show llama3_8B_tiny --paths
    python -m primus.config check
    python -m primus.config freeze llama3_8B_tiny --stage train --output S.json
    python -m primus.config schema > configs/schema.json
    python -m primus.config schema model > configs/models/schema.json
    python -m primus.config schema hardware > configs/hardware/schema.json
    python -m primus.config schema recipe > configs/recipes/schema.json
    python -m primus.config reference > docs/reference.md
    python -m primus.config defaults > configs/default.yaml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primus.command_line import Command, add_subcommand
from primus.config import reference
from primus.config.arguments import add_config_argument, overrides
from primus.config.fields import walk
from primus.config.identity import identities
from primus.config.load import Resolved, experiments, load
from primus.config.paths import artifact
from primus.config.pipeline import freeze
from primus.config.schema.keys import STAGES
from primus.errors import ConfigError, Problem, run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand."""
    args = command_parser().parse_args(argv)
    args.run(args)


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.config", __doc__)
    commands = parser.add_subcommands()

    command = add_subcommand(commands, "freeze", "write the frozen settings of one stage")
    command.add_argument("experiment", help="name of a file under configs/")
    command.add_argument("--stage", required=True, choices=STAGES, help="which one")
    command.add_argument("--output", required=True, type=Path, help="file to write")
    add_config_argument(command)
    command.set_defaults(run=_freeze)

    command = add_subcommand(commands, "show", "print the resolved settings and their sources")
    command.add_argument("experiment", help="name of a file under configs/")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--paths", action="store_true", help="where the results are, instead")
    add_config_argument(command)
    command.set_defaults(run=_show)

    command = add_subcommand(commands, "check", "check experiments (default: all)")
    command.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="names of files under configs/"
    )
    add_config_argument(command)
    command.set_defaults(run=_check)

    command = add_subcommand(commands, "schema", "print the editors' schema of a kind of file")
    command.add_argument(
        "kind", nargs="?", choices=tuple(reference.SCHEMAS), default="experiment", help="which kind"
    )
    command.set_defaults(run=lambda args: print(reference.json_schema(args.kind), end=""))

    for name, write, text in (
        ("reference", reference.markdown, "print docs/reference.md"),
        ("defaults", reference.defaults, "print configs/default.yaml"),
    ):
        command = add_subcommand(commands, name, text)
        command.set_defaults(run=lambda _, write=write: print(write(), end=""))
    return parser


def _freeze(args: argparse.Namespace) -> None:
    resolved = load(args.experiment, overrides(args.config), stages=())
    freeze(identities(resolved.settings)[args.stage], args.output)


def _show(args: argparse.Namespace) -> None:
    resolved = load(args.experiment, overrides(args.config), stages=())
    if args.json:
        stages = identities(resolved.settings)
        content = {
            "settings": resolved.settings.model_dump(),
            "sources": dict(resolved.sources),
            "keys": {stage: made.key for stage, made in stages.items()},
            "paths": {stage: artifact(made) for stage, made in stages.items()},
        }
        print(json.dumps(content, indent=2, sort_keys=True))
        return
    if args.paths:
        _show_paths(resolved)
        return
    rows = list(_rows(resolved))
    names, shown = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, value, source in rows:
        print(f"{name:<{names}}  {value:<{min(shown, 48)}}  {source}")


def _show_paths(resolved: Resolved) -> None:
    made = identities(resolved.settings)
    print(f"report: {artifact(made['report'])}")
    print(f"model:  {Path(artifact(made['export'])).parent}")
    print(f"run:    {Path(artifact(made['train'])).parent}")


def _rows(resolved: Resolved) -> list[tuple[str, str, str]]:
    rows = []
    for path, _ in walk():
        value: Any = resolved.settings
        for name in path:
            value = getattr(value, name, None)
        dotted = ".".join(path)
        if not hasattr(value, "model_dump"):
            source = resolved.source(dotted)
            rows.append((dotted, json.dumps(value, ensure_ascii=False), source))
    return rows


def _check(args: argparse.Namespace) -> None:
    found: list[Problem] = []
    names = args.experiments or experiments()
    for name in names:
        try:
            # An evaluation is only made where it is asked for by name.
            load(name, overrides(args.config), stages=set(STAGES) - {"evaluate"})
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    print(f"{len(names)} experiments: no mistakes")


if __name__ == "__main__":
    run_main(main)
