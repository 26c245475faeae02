"""What a check gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from primus.config.schema.keys import Stage


class Fault(NamedTuple):
    """A key (dotted) whose value does not go with the others."""

    key: str
    why: str
    fix: str


@dataclass(frozen=True)
class Context:
    """What the checks know besides the settings."""

    root: Path
    stages: frozenset[Stage]


# Takes Settings or Partial.
Check = Callable[[Any, Context], Iterator[Fault]]


def divisors(number: int, limit: int | None = None) -> str:
    """The divisors of a number as text, for the fix of a message."""
    return ", ".join(str(d) for d in range(1, min(number, limit or number) + 1) if number % d == 0)
