"""A sweep as one self-contained page, in the style of the report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primus.artifacts.sweep import SweepManifest, SweptPoint
from primus.reports.comparison.page import VERDICTS
from primus.reports.formats import MISSING, number, setting
from primus.reports.sweep.figures import COLOURED, draw_figures
from primus.reports.sweep.read import Swept
from primus.reports.sweep.table import HEADING, figures, values_of
from primus.reports.template import render_template

# Of a cell's ground, in percent: text stays readable on it.
_DARKEST = 45


def render(sweep: SweepManifest, ordered: Sequence[Swept], output: Path) -> str:
    """The whole page; the figures are the only markup that is passed through.

    Args:
        ordered: the points as they stand in `sweep`.
        output: where the page will lie, for its links.
    """
    keys = sweep.varied or list(sweep.same)
    runs = [one.run for one in ordered if one.run is not None]
    return render_template(
        "sweep.html.j2",
        sweep=sweep,
        keys=keys,
        heading=HEADING,
        rows=[(point, values_of(point, keys), figures(point)) for point in sweep.points],
        links={point.key: _link(point, output) for point in sweep.points},
        drawn=draw_figures(sweep, runs),
        coloured=COLOURED,
        grey=len(runs) > COLOURED,
        grid=heat(sweep),
        same={key: setting(value) for key, value in sweep.same.items()} if sweep.varied else {},
        finished=sum(point.finished for point in sweep.points),
        verdicts=VERDICTS,
    )


def _link(point: SweptPoint, output: Path) -> str | None:
    """The run's report as seen from the page; a failed one where there is only that."""
    for name in ("report.html", "report.failed.html"):
        path = Path(point.directory) / name
        if path.is_file():
            return os.path.relpath(path, output.parent)
    return None


def heat(sweep: SweepManifest) -> dict[str, Any] | None:
    """Losses of a sweep over two keys, as rows and columns with a shade for each cell.

    Returns:
        None for any other number of keys. Shades are percent, the lowest loss the darkest.
    """
    if len(sweep.varied) != 2:
        return None
    down, across = sweep.varied
    losses = {_place(point, (down, across)): _loss(point, sweep) for point in sweep.points}
    known = [loss for loss in losses.values() if loss is not None]
    if len(known) < 2:
        return None
    low, high = min(known), max(known)
    sides = [_values(sweep, key) for key in (down, across)]

    def cell(row: str, column: str) -> tuple[str, int]:
        loss = losses.get((row, column))
        if loss is None:
            return MISSING, 0
        return number(loss), round(_DARKEST * (high - loss) / max(high - low, 1e-12))

    return {
        "down": down,
        "across": across,
        "columns": sides[1],
        "rows": [(row, [cell(row, column) for column in sides[1]]) for row in sides[0]],
    }


def _loss(point: SweptPoint, sweep: SweepManifest) -> float | None:
    if not point.finished:
        return None
    return point.validation_loss if sweep.measure == "validation" else point.training_loss


def _place(point: SweptPoint, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(values_of(point, keys))


def _values(sweep: SweepManifest, key: str) -> list[str]:
    """The values of a key, in their order where they are numbers, as text."""
    found = {json.dumps(point.values[key]): point for point in sweep.points}
    points = list(found.values())
    if all(isinstance(point.values[key], int | float) for point in points):
        points.sort(key=lambda point: float(point.values[key]))
    return list(dict.fromkeys(values_of(point, [key])[0] for point in points))
