"""Which run of an experiment is its newest one. Every command that has to choose asks here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from primus.files import read_json


def newest_first(runs: Iterable[Path]) -> list[Path]:
    """Directories of runs, ordered by when the last attempt of each began, the last one first.

    Runs of which no attempt left a readable record come last. What is equal goes by name.
    """
    return sorted(runs, key=lambda run: (max(_starts(run), default=0.0), run.name), reverse=True)


def _starts(run: Path) -> Iterator[float]:
    """Seconds since the epoch. Read as they lie there: the configuration knows no artefacts."""
    for path in run.glob("attempts/*/attempt.json"):
        try:
            started = read_json(path)["started"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if isinstance(started, int | float):
            yield started
