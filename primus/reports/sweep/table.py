"""A sweep as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from primus.artifacts.sweep import SweepManifest, SweptPoint
from primus.hidden import printable
from primus.reports.comparison.table import aligned
from primus.reports.formats import MISSING, number, seconds, setting

HEADING = ("validation loss", "training loss", "against the best", "tokens/s", "wall time")


def lines(sweep: SweepManifest) -> Iterator[str]:
    """What can be said of it, and a row for each point, the best first."""
    yield from map(printable, _lines(sweep))


def _lines(sweep: SweepManifest) -> Iterator[str]:
    keys = sweep.varied or list(sweep.same)
    rows = [[*values_of(point, keys), *figures(point), point.state] for point in sweep.points]
    yield from aligned([*keys, *HEADING, "state"], rows)
    yield ""
    if sweep.varied and sweep.same:
        yield "in all: " + ", ".join(f"{key}={setting(v)}" for key, v in sweep.same.items())
    yield from sweep.words
    yield from sweep.notes


def values_of(point: SweptPoint, keys: Sequence[str]) -> list[str]:
    """The values of some keys as text."""
    found = [point.values[key] for key in keys]
    return [MISSING if value is None else setting(value) for value in found]


def figures(point: SweptPoint) -> list[str]:
    """The figures of a point as text, in the order of HEADING."""
    return [
        number(point.validation_loss),
        number(point.training_loss),
        _against(point),
        number(point.tokens_per_second.median if point.tokens_per_second else None),
        seconds(point.wall_seconds),
    ]


def _against(point: SweptPoint) -> str:
    """The difference of training losses, and whether it is more than noise."""
    found = point.difference
    if found is None:
        return MISSING
    if found.equal_rows:
        return "equal"
    if found.mean is None:
        return "too few rows"
    how = "" if found.mean.significant else " (noise)"
    return f"{found.mean.value:+.4f}{how}"
