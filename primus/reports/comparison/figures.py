"""The figures of a comparison: a line for each run, told apart by colour and by dashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from primus.artifacts.comparison import ComparisonManifest
from primus.reports.comparison.read import Run
from primus.reports.figures import INK, SOFT, Array, series, svg

# As in primus.reports.figures: each light value stands for a variable of the page. Okabe and Ito's
# colours, in the order in which they differ most for those who see few.
_COLOURS = {
    "#0072b2": "--blue",
    "#d55e00": "--orange",
    "#009e73": "--green",
    "#cc79a7": "--purple",
    "#5c4fa0": "--violet",
    "#7d5a3c": "--brown",
    "#4d9ac8": "--lake",
    "#84771f": "--olive",
}
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (8, 2, 2, 2)))
_MARKERS = "osD^vP*X"
# Of all rows: what the strong line is a mean of.
_SMOOTHED = 0.03
_LEFT_OUT = 0.05


@dataclass(frozen=True)
class Style:
    """How a run is drawn."""

    colour: str
    dashes: Any
    marker: str


def styles(count: int) -> list[Style]:
    """For up to eight runs; no two alike without colour either."""
    colours = list(_COLOURS)
    return [
        Style(
            colour=colours[i % len(colours)],
            dashes=_DASHES[i % len(_DASHES)],
            marker=_MARKERS[i % len(_MARKERS)],
        )
        for i in range(count)
    ]


def draw_figures(comparison: ComparisonManifest, runs: Sequence[Run]) -> dict[str, str]:
    """All figures as inline SVG, by name."""
    labels = [run.label for run in runs]
    high = 0.9 + 0.32 * len(labels)
    drawn = {
        "loss": svg("loss", (9.0, 4.2), lambda ax: loss_curves(ax, runs)),
        "loss-narrow": svg("loss-narrow", (4.6, 4.2), lambda ax: loss_curves(ax, runs)),
        "speed": svg("speed", (9.0, high), lambda ax: _speed(ax, comparison)),
        "speed-narrow": svg("speed-narrow", (4.6, high), lambda ax: _speed(ax, comparison)),
    }
    return {name: themed(text) for name, text in drawn.items()}


def themed(text: str) -> str:
    """The colours of runs as the page's own."""
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    return text


def smoothed(values: Array, window: int) -> Array:
    """Mean of `window` rows around each, of fewer at the ends; rows that are NaN count for none."""
    known = ~np.isnan(values)
    sums = np.convolve(np.where(known, values, 0.0), np.ones(window), mode="same")
    counts = np.convolve(known.astype(np.float64), np.ones(window), mode="same")
    with np.errstate(invalid="ignore"):
        return sums / np.where(counts > 0, counts, np.nan)


def loss_curves(ax: Axes, runs: Sequence[Run]) -> None:
    """Training and validation losses of up to eight runs against tokens."""
    ax.set_title("Loss, nats per token", loc="left", fontsize=10.5, color=INK)
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
    ax.set_xlabel("tokens")
    ax.set_xlim(0, 1.01 * max(run.curve.train[-1].consumed_tokens for run in runs))
    ax.grid(visible=False, axis="x")
    shown = []
    for run, style in zip(runs, styles(len(runs)), strict=True):
        tokens = [float(row.consumed_tokens) for row in run.curve.train]
        raw = np.array([np.nan if row.loss is None else row.loss for row in run.curve.train])
        even = smoothed(raw, 1 + 2 * round(_SMOOTHED * len(raw) / 2))
        pale, strong = series(tokens, list(raw)), series(tokens, list(even))
        ax.plot(pale.x, pale.mean, color=style.colour, linewidth=0.8, alpha=0.3)
        marker = "." if len(strong.x) < 3 else None
        line: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes, "marker": marker}
        ax.plot(strong.x, strong.mean, label=run.label, **line)
        shown.append(strong.mean[~np.isnan(strong.mean)])
        if valid := run.curve.valid:
            at = [run.tokens_at(row.iteration) for row in valid]
            dots: dict[str, Any] = {
                "color": style.colour,
                "marker": style.marker,
                "linestyle": "none",
            }
            ax.plot(at, [row.loss for row in valid], markersize=4.5, zorder=4, **dots)
            shown.append(np.array([row.loss for row in valid]))
    _look_at_the_end(ax, np.concatenate(shown))
    legend = ax.legend(loc="upper right", labelcolor=INK, fontsize=9, handlelength=3.5)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a path may hold dollar signs


def _look_at_the_end(ax: Axes, losses: Array) -> None:
    """Leave the steep beginning out of sight: the runs differ where the curves are flat."""
    if losses.size == 0:
        return
    low, high = float(losses.min()), float(np.quantile(losses, 1 - _LEFT_OUT))
    room = max(high - low, 1e-3)
    ax.set_ylim(low - 0.06 * room, high + 0.12 * room)


def _speed(ax: Axes, comparison: ComparisonManifest) -> None:
    ax.set_title("Throughput, tokens/s", loc="left", fontsize=10.5, color=INK)
    runs = comparison.runs
    for place, (run, style) in enumerate(zip(runs, styles(len(runs)), strict=True)):
        rate = run.tokens_per_second
        line: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes}
        ax.plot([rate.p5, rate.p95], [place, place], linewidth=1.4, **line)
        dot: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": "none"}
        ax.plot([rate.median], [place], markersize=7, **dot)
    first = runs[0].tokens_per_second.median
    ax.axvline(first, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    ax.set_yticks(range(len(runs)), [run.label for run in runs])
    for text in ax.get_yticklabels():
        text.set_parse_math(False)
    ax.set_ylim(len(runs) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
