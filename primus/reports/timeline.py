"""The attempts of a run on one time axis."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from primus.reports.budget import Kind
from primus.reports.figures import INK, SOFT, TRAIN, VALID, svg
from primus.reports.inputs import Inputs

# Told apart by their patterns as well as by their colours.
_LOOKS: dict[Kind, dict[str, Any]] = {
    "queue": {"facecolor": "none", "edgecolor": SOFT, "hatch": "-----", "linewidth": 0.8},
    "start": {"facecolor": "none", "edgecolor": SOFT, "hatch": "/////", "linewidth": 0.8},
    "train": {"facecolor": TRAIN, "edgecolor": TRAIN, "linewidth": 0.8},
    "lost": {"facecolor": "none", "edgecolor": VALID, "hatch": "xxxx", "linewidth": 0.8},
    "end": {"facecolor": "none", "edgecolor": SOFT, "linewidth": 0.8},
}
LABELS: dict[Kind, str] = {
    "queue": "in the queue",
    "start": "start-up",
    "train": "part of the result",
    "lost": "run again later",
    "end": "ending",
}
# Of a run with more, the last.
MOST = 40
_UNITS = ((2 * 86400, 86400, "days"), (2 * 3600, 3600, "hours"), (180, 60, "minutes"))


def draw_timeline(inputs: Inputs) -> dict[str, str]:
    """The figure for a wide and for a narrow page, by name; none for a run without attempts."""
    shown = inputs.attempts[-MOST:]
    if not shown:
        return {}
    high = 1.25 + 0.3 * len(shown)
    return {
        "attempts": svg("attempts", (9.0, high), lambda ax: _draw(ax, inputs, 5)),
        "attempts-narrow": svg(
            "attempts-narrow", (4.6, high + 0.35), lambda ax: _draw(ax, inputs, 2)
        ),
    }


def _draw(ax: Axes, inputs: Inputs, columns: int) -> None:
    spent = inputs.phases
    shown = inputs.attempts[-MOST:]
    begin = min(phase.begin for one in spent.values() for phase in one)
    end = max(phase.end for one in spent.values() for phase in one)
    unit, word = next(
        ((size, name) for least, size, name in _UNITS if end - begin >= least), (1, "seconds")
    )
    left = min(phase.begin for attempt in shown for phase in spent[attempt.number])
    told = set()
    for place, attempt in enumerate(shown):
        for phase in spent[attempt.number]:
            if phase.kind == "between":
                continue
            label = LABELS[phase.kind] if phase.kind not in told else None
            told.add(phase.kind)
            where: dict[str, Any] = {"left": (phase.begin - begin) / unit, "height": 0.62}
            ax.barh(place, phase.seconds / unit, label=label, **where, **_LOOKS[phase.kind])
    ax.set_yticks(
        range(len(shown)),
        [f"{attempt.number} {attempt.status}" for attempt in shown],
        color=INK,
    )
    ax.set_ylim(len(shown) - 0.45, -0.55)
    ax.set_xlim((left - begin) / unit, (end - begin) / unit * 1.005)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8 if columns > 2 else 5))
    ax.set_xlabel(word)
    place_above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    ax.legend(ncols=columns, labelcolor=INK, fontsize=9, borderaxespad=0.2, **place_above)
