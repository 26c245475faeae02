"""Resolve, check, freeze and document the configuration.

Examples:
    python -m primus.config show llama3_8B --config lr=2e-4
    python -m primus.config show llama3_8B_tiny --paths
    python -m primus.config check
    python -m primus.config check llama3_8B llama3_8B_tiny_lr
    python -m primus.config freeze llama3_8B_tiny --stage train --output S.json
    python -m primus.config schema > configs/schema.json
    python -m primus.config schema model > configs/models/schema.json
    python -m primus.config schema hardware > configs/hardware/schema.json
    python -m primus.config schema recipe > configs/recipes/schema.json
    python -m primus.config schema sweep > configs/sweeps/schema.json
    python -m primus.config reference > docs/reference.md
    python -m primus.config defaults > configs/default.yaml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from primus.command_line import Command, add_subcommand
from primus.config import reference
from primus.config.arguments import add_config_argument, overrides
from primus.config.fields import walk
from primus.config.identity import identities
from primus.config.load import Resolved, bad_names, experiments, load
from primus.config.paths import artifact
from primus.config.pipeline import freeze
from primus.config.problems import did_you_mean, listed, show
from primus.config.schema.keys import STAGES
from primus.config.sweep import plan_sweep
from primus.config.sweep_file import read_sweep
from primus.config.sweep_names import SWEEPS, sweeps
from primus.errors import ConfigError, Problem, run_main

# An evaluation is only made where it is asked for by name.
_CHECKED = frozenset(STAGES) - {"evaluate"}


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

    command = add_subcommand(commands, "check", "check experiments and sweeps (default: all)")
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="of files under configs/ or configs/sweeps/"
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
    known, swept = experiments(), sweeps()
    found = [] if args.names else bad_names(SWEEPS)
    for name in args.names:
        if name not in {*known, *swept}:
            found.append(_unknown(name, {*known, *swept}))
    # A sweep may bear the name of an experiment: both are meant.
    asked, given = set(args.names or [*known, *swept]), overrides(args.config)
    broken = set()
    for name in (name for name in known if name in asked):
        try:
            load(name, given, stages=_CHECKED)
        except ConfigError as error:
            found += error.problems
            broken.add(name)
    for name in (name for name in swept if name in asked):
        try:
            # What is wrong with the experiment itself has been said.
            if read_sweep(name).experiment not in broken:
                plan_sweep(name, given, Path(), _CHECKED)
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    counts = [(len(asked & {*known}), "experiment"), (len(asked & {*swept}), "sweep")]
    words = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count]
    print(f"{', '.join(words)}: no mistakes")


def _unknown(name: str, known: Collection[str]) -> Problem:
    why = f"there is no experiment or sweep {show(name)}"
    fix = did_you_mean(name, known) or f"known: {listed(known)}"
    return Problem(file="configs", key="", value="", why=why, fix=fix)


if __name__ == "__main__":
    run_main(main)
