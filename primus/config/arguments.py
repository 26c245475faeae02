"""The `--config key=value` argument of the commands for people, as Snakemake has it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from primus.errors import ConfigError, Problem
from primus.files import parse_json

# In long, in short, and with the value in the same word.
_CONFIG = re.compile(r"--config(=.*)?|-C.*", re.DOTALL)


def overrides(given: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments, or one JSON object, as overrides.

    Raises:
        ConfigError: an argument is neither.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if text.startswith("{"):
            found |= _object(text)
        elif equals and name:
            found[name] = value
        else:
            raise _not_understood(text)
    return found


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config key=value …`, as Snakemake has it."""
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="values that replace those of the files, or one JSON object",
    )


def refuse_two(words: Sequence[str]) -> None:
    """Look for a second `--config` on Snakemake's command line: it takes the last one alone.

    Raises:
        ConfigError: there is one.
    """
    if sum(_CONFIG.fullmatch(word) is not None for word in words) > 1:
        why = "is given more than once, and Snakemake would forget all but the last"
        fix = "write one: --config lr=1e-4 seed=5"
        raise ConfigError([Problem(file="--config", key="", value="", why=why, fix=fix)])


def _object(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(text)
    except ValueError:
        raise _not_understood(text) from None
    return found


def _not_understood(text: str) -> ConfigError:
    why = f"{text!r} is neither key=value nor a JSON object"
    return ConfigError([Problem(file="--config", key="", value="", why=why, fix="write lr=1e-4")])
