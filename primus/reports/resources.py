"""Figures of the memory of ranks and of the load of experts; only where the run told of them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from primus.artifacts.run import ExpertRow
from primus.reports.figures import INK, SOFT, TRAIN, VALID, Chart, chart_of, frame, series, svg
from primus.reports.headline import peak_by_rank
from primus.reports.inputs import Inputs

_GIB = float(2**30)
# More ranks than bars can show get a line; more experts than dots can, their spread.
_MOST_BARS = 48
MOST_DOTS = 600


def draw_resources(inputs: Inputs) -> dict[str, str]:
    """All of them as inline SVG, by name."""
    curve = inputs.curve
    found = {}
    if curve.memory:
        found["memory"] = svg("memory", (4.6, 2.5), lambda ax: _memory(ax, inputs))
    if any(row.expert_load for row in curve.train):
        chart = chart_of(inputs)
        found["expert-load"] = svg("expert-load", (4.6, 2.6), lambda ax: _load(ax, chart))
    if curve.experts:
        last = curve.experts[-1]
        found["experts"] = svg("experts", (4.6, 2.6), lambda ax: _experts(ax, last))
    return found


def _memory(ax: Axes, inputs: Inputs) -> None:
    peaks = np.array(peak_by_rank(inputs.curve)) / _GIB
    device = min(inputs.curve.memory[-1].device_bytes) / _GIB
    ax.set_title("Peak memory, GiB", loc="left", fontsize=10.5, color=INK)
    if len(peaks) <= _MOST_BARS:
        ax.bar(range(len(peaks)), peaks, width=0.7, color=TRAIN)
    else:
        ax.step(range(len(peaks)), peaks, where="mid", color=TRAIN)
    top = peaks.max() * 1.15
    if device <= 2 * peaks.max():
        ax.axhline(device, color=SOFT, linewidth=1.1, linestyle=(0, (6, 3)), label="device")
        ax.legend(loc="lower right", labelcolor=INK, fontsize=9)
        top = max(top, device * 1.1)
    ax.set_ylim(0, top)
    ax.set_xlim(-0.6, len(peaks) - 0.4)
    ax.set_xlabel("rank")
    ax.grid(visible=False, axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _load(ax: Axes, chart: Chart) -> None:
    """Over the training: the most uneven layer and the usual one."""
    frame(ax, chart, "Tokens of the busiest expert over the mean")
    rows = [row for row in chart.rows if row.expert_load]
    x = [float(row.consumed_tokens) for row in rows]
    for what, function, colour, dashes in (
        ("most uneven layer", max, VALID, "-"),
        ("median of the layers", np.median, TRAIN, (0, (5, 2))),
    ):
        data = series(x, [float(function(row.expert_load)) for row in rows])
        marker = "." if len(data.x) < 3 else None
        ax.plot(data.x, data.mean, color=colour, linestyle=dashes, label=what, marker=marker)
    # Room below the title for the legend, above the lines.
    top = max(1.1, max(max(row.expert_load) for row in rows))
    ax.set_ylim(1, 1 + 1.45 * (top - 1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.legend(loc="upper right", labelcolor=INK, fontsize=9)


def _experts(ax: Axes, row: ExpertRow) -> None:
    """Between the last two checkpoints: each expert of each layer."""
    ax.set_title(
        "Tokens of an expert over the mean, by layer", loc="left", fontsize=10.5, color=INK
    )
    counts = np.array(row.tokens, dtype=np.float64)
    shares = counts / counts.mean(axis=1, keepdims=True)
    top = max(1.1, 1.08 * float(shares.max()))
    if shares.size <= MOST_DOTS:
        for layer, values in zip(row.layers, shares, strict=True):
            ax.plot([layer] * len(values), values, "_", color=TRAIN, markersize=11)
    else:
        low, middle, high = np.percentile(shares, [5, 50, 95], axis=1)
        ax.vlines(row.layers, low, high, color=TRAIN, linewidth=1.6)
        ax.plot(row.layers, middle, ".", color=TRAIN, markersize=3.5)
        ax.plot(row.layers, shares.max(axis=1), "x", color=VALID, markersize=4, label="busiest")
        ax.legend(loc="upper right", labelcolor=INK, fontsize=9)
        top *= 1.3
    ax.axhline(1, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    ax.set_ylim(0, top)
    ax.set_xlim(min(row.layers) - 0.6, max(row.layers) + 0.6)
    ax.set_xlabel("layer")
    ax.grid(visible=False, axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
