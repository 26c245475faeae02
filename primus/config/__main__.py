"""`python -m primus.config`: resolve, check, freeze and document the configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    args = _parser().parse_args(argv)
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m primus.config", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("freeze", help="write the frozen settings of one stage")
    command.add_argument("experiment")
    command.add_argument("--stage", required=True, choices=STAGES)
    command.add_argument("--output", required=True, type=Path)
    add_config_argument(command)
    command.set_defaults(run=_freeze)

    command = commands.add_parser("show", help="print the resolved settings and their sources")
    command.add_argument("experiment")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--paths", action="store_true", help="where the results are, instead")
    add_config_argument(command)
    command.set_defaults(run=_show)

    command = commands.add_parser("check", help="check experiments (default: all)")
    command.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    add_config_argument(command)
    command.set_defaults(run=_check)

    for name, write, text in (
        ("schema", reference.json_schema, "print configs/schema.json"),
        ("reference", reference.markdown, "print docs/reference.md"),
        ("defaults", reference.defaults, "print configs/default.yaml"),
    ):
        command = commands.add_parser(name, help=text)
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
