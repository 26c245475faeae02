"""The figures of a sweep: the curves on one axis, and the final loss against the one key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from primus.artifacts.sweep import SweepManifest, SweptPoint
from primus.reports.comparison.figures import loss_curves, themed
from primus.reports.comparison.read import Run
from primus.reports.figures import INK, SOFT, TRAIN, VALID, series, svg
from primus.reports.formats import setting

# As many as can be told apart.
COLOURED = 8
# From this ratio of the largest value to the smallest on an axis is logarithmic.
_DECADES = 8.0


def draw_figures(sweep: SweepManifest, runs: Sequence[Run]) -> dict[str, str]:
    """All figures as inline SVG, by name; none where nothing has been logged.

    Args:
        runs: of the points that have logged something, in the order of the report.
    """
    drawn = {}
    if runs:
        drawn["loss"] = svg("loss", (9.0, 4.2), lambda ax: _loss(ax, runs))
        drawn["loss-narrow"] = svg("loss-narrow", (4.6, 4.2), lambda ax: _loss(ax, runs))
    finished = [point for point in sweep.points if point.finished]
    if len(sweep.varied) == 1 and len(finished) > 1:
        drawn["key"] = svg("key", (9.0, 3.4), lambda ax: _against(ax, sweep, finished))
        drawn["key-narrow"] = svg(
            "key-narrow", (4.6, 3.4), lambda ax: _against(ax, sweep, finished)
        )
    return {name: themed(text) for name, text in drawn.items()}


def _loss(ax: Axes, runs: Sequence[Run]) -> None:
    for run in runs[COLOURED:]:
        rows = run.curve.train
        pale = series([float(row.consumed_tokens) for row in rows], [row.loss for row in rows])
        ax.plot(pale.x, pale.mean, color=SOFT, linewidth=0.7, alpha=0.5)
    loss_curves(ax, runs[:COLOURED])
    ax.set_xlim(0, 1.01 * max(run.curve.train[-1].consumed_tokens for run in runs))


def _against(ax: Axes, sweep: SweepManifest, points: Sequence[SweptPoint]) -> None:
    """Final losses over the values of the one key."""
    (key,) = sweep.varied
    ax.set_title(
        f"Loss at the end over {key}, nats per token", loc="left", fontsize=10.5, color=INK
    )
    ax.set_xlabel(key)
    values = [point.values[key] for point in points]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        places = [float(value) for value in values]
        if min(places) > 0 and max(places) >= _DECADES * min(places):
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xticks(sorted(set(places)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    else:
        places = [float(place) for place in range(len(values))]
        ax.set_xticks(places, [setting(value)[:24] for value in values])
    order = sorted(range(len(places)), key=lambda i: places[i])
    for name, colour, losses in (
        ("training", TRAIN, [point.training_loss for point in points]),
        ("validation", VALID, [point.validation_loss for point in points]),
    ):
        known = [(places[i], loss) for i in order if (loss := losses[i]) is not None]
        style: dict[str, Any] = {"marker": "o", "markersize": 5, "linewidth": 1.2}
        style["linestyle"] = "-" if name == sweep.measure else "--"
        if known:
            xs, ys = zip(*known, strict=True)
            ax.plot(xs, ys, color=colour, label=name, **style)
    best = points[0].validation_loss if sweep.measure == "validation" else points[0].training_loss
    if sweep.best is not None and best is not None:
        ring: dict[str, Any] = {"markersize": 12, "linestyle": "none", "fillstyle": "none"}
        ax.plot([places[0]], [best], color=INK, marker="o", label="best", **ring)
    ax.legend(loc="best", labelcolor=INK, fontsize=9)
    for text in (*ax.get_xticklabels(), ax.title, ax.xaxis.label):
        text.set_parse_math(False)
