"""The figures: matplotlib draws, the colours become the page's own so that dark mode works."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from primus.artifacts.report import Headline, Spread
from primus.artifacts.run import MetricsRow
from primus.files import atomic_write
from primus.reports.inputs import Inputs

Array = NDArray[np.float64]

# Each of these stands for a variable of the page's style sheet, which has a light and a dark value.
# The light values here are those of the PNG. Blue, vermilion and green are Okabe and Ito's.
INK, SOFT, GRID = "#24292f", "#636b74", "#d8dce1"
TRAIN, VALID, THIRD = "#0072b2", "#d55e00", "#009e73"
_VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--line",
    TRAIN: "--blue",
    VALID: "--orange",
    THIRD: "--green",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "primus",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "path.simplify_threshold": 0.3,
}
_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class Series:
    """At most `_POINTS` points of a curve: mean, smallest and largest of each bucket."""

    x: Array
    mean: Array
    low: Array
    high: Array


def series(x: Sequence[float], y: Sequence[float | None]) -> Series:
    """Thin a curve to what a page can show; buckets hold equal numbers of rows."""
    ys = np.asarray([np.nan if value is None else value for value in y], dtype=np.float64)
    size = -(-len(ys) // _POINTS)
    edges = range(size, len(ys), size)
    xs = np.split(np.asarray(x, dtype=np.float64), edges)
    buckets = np.split(ys, edges)
    return Series(
        x=np.array([part[-1] for part in xs]),
        mean=np.array([part.mean() for part in buckets]),
        low=np.array([part.min() for part in buckets]),
        high=np.array([part.max() for part in buckets]),
    )


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What all figures of a run share."""

    rows: list[MetricsRow]
    restarts: list[int]
    tokens: Callable[[float], float]

    @property
    def x(self) -> list[float]:
        """Consumed tokens of every row."""
        return [float(row.consumed_tokens) for row in self.rows]


def chart_of(inputs: Inputs) -> Chart:
    """The rows of the result, and where a restart joined them."""
    last = inputs.curve.train[-1]
    per_iteration = last.consumed_tokens / max(last.iteration, 1)
    starts = [span.base for span in inputs.curve.spans if span.base > 0]
    return Chart(
        rows=inputs.curve.train,
        restarts=starts,
        tokens=lambda iteration: iteration * per_iteration,
    )


def draw_curves(inputs: Inputs, headline: Headline) -> dict[str, str]:
    """What is drawn against tokens, as inline SVG, by name."""
    chart = chart_of(inputs)
    drawn = {
        "loss": (lambda ax: _loss(ax, chart, inputs), (9.0, 3.7)),
        "loss-narrow": (lambda ax: _loss(ax, chart, inputs), (4.6, 3.6)),
        "lr": (lambda ax: _lr(ax, chart), (4.6, 2.5)),
        "grad-norm": (lambda ax: _grad_norm(ax, chart), (4.6, 2.5)),
        "throughput": (lambda ax: _throughput(ax, chart, headline), (9.0, 2.7)),
        "throughput-narrow": (lambda ax: _throughput(ax, chart, headline), (4.6, 2.7)),
    }
    return {name: svg(name, size, draw) for name, (draw, size) in drawn.items()}


def save_loss_png(inputs: Inputs, path: Path) -> None:
    """The loss curve as a picture on white, for a README."""
    chart = chart_of(inputs)
    with _styled():
        figure = Figure(figsize=(9.0, 3.7), layout="constrained", facecolor="white")
        _loss(figure.subplots(), chart, inputs)
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, format="png", dpi=150)


def _styled() -> AbstractContextManager[None]:
    style: Any = _STYLE
    return matplotlib.rc_context(style)


def svg(name: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Draw one figure as an SVG element that takes its colours from the page."""
    with _styled():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    return inline(stream.getvalue(), name)


def inline(text: str, name: str) -> str:
    """Strip a standalone SVG file to an element: own ids, page colours, page font, no size."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()


def scaling(factor: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The two directions of an axis that shows `factor` times another one."""
    return (lambda value: value * factor), (lambda value: value / factor)


def frame(ax: Axes, chart: Chart, title: str) -> None:
    """The axis of tokens, restarts, and what the y axis shows."""
    ax.set_title(title, loc="left", fontsize=10.5, color=INK)
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=3))
    ax.set_xlabel("tokens")
    ax.set_xlim(0, chart.x[-1] * 1.01)
    ax.grid(visible=False, axis="x")
    for restart in chart.restarts:
        ax.axvline(chart.tokens(restart), color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))


def _line(ax: Axes, data: Series, colour: str, label: str = "") -> None:
    if not np.array_equal(data.low, data.high, equal_nan=True):
        ax.fill_between(data.x, data.low, data.high, color=colour, alpha=0.22, linewidth=0)
    marker = "." if len(data.x) < 3 else None
    ax.plot(data.x, data.mean, color=colour, label=label, marker=marker)


def _loss(ax: Axes, chart: Chart, inputs: Inputs) -> None:
    frame(ax, chart, "Loss, nats per token")
    _line(ax, series(chart.x, [row.loss for row in chart.rows]), TRAIN, "training")
    valid = inputs.curve.valid
    if valid:
        xs, ys = [chart.tokens(row.iteration) for row in valid], [row.loss for row in valid]
        style: dict[str, Any] = {
            "marker": "o",
            "markersize": 4.5,
            "linestyle": "--",
            "linewidth": 1.1,
        }
        ax.plot(xs, ys, color=VALID, label="validation", clip_on=False, zorder=4, **style)
    entropy = inputs.data.unigram_entropy
    ax.axhline(entropy, color=SOFT, linewidth=1.1, linestyle=(0, (6, 3)), label="unigram entropy")
    if chart.restarts:
        ax.plot([], [], color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)), label="restart")
    ax.legend(loc="upper right", labelcolor=INK, fontsize=10)
    iterations = ax.secondary_xaxis("top", functions=scaling(1 / chart.tokens(1)))
    iterations.set_xlabel("iterations", loc="right")
    iterations.tick_params(length=3)
    iterations.spines["top"].set_visible(False)
    iterations.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _lr(ax: Axes, chart: Chart) -> None:
    frame(ax, chart, "Learning rate")
    _line(ax, series(chart.x, [row.lr for row in chart.rows]), TRAIN)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _grad_norm(ax: Axes, chart: Chart) -> None:
    frame(ax, chart, "Gradient norm before clipping")
    norms = [row.grad_norm for row in chart.rows]
    _line(ax, series(chart.x, norms), TRAIN)
    known = [norm for norm in norms if norm is not None and norm > 0]
    if known and max(known) > 30 * min(known):
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    counts = [0, *(row.skipped_iterations for row in chart.rows)]
    skipped = [
        x for x, (before, after) in zip(chart.x, pairwise(counts), strict=True) if after > before
    ]
    if skipped:
        # At the foot: such a step has a norm that is no number, or none.
        foot: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(skipped, [0.03] * len(skipped), "x", color=VALID, label="skipped steps", **foot)
        ax.legend(loc="upper right", labelcolor=INK)


def _percentiles(ax: Axes, found: Spread) -> None:
    ax.axhspan(found.p5, found.p95, color=TRAIN, alpha=0.10, linewidth=0)
    ax.axhline(found.median, color=TRAIN, linewidth=0.9, linestyle=(0, (4, 3)))


def _throughput(ax: Axes, chart: Chart, headline: Headline) -> None:
    frame(ax, chart, "Throughput, tokens/s")
    _percentiles(ax, headline.tokens_per_second)
    _line(ax, series(chart.x, [row.tokens_per_second for row in chart.rows]), TRAIN)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.yaxis.set_major_formatter(EngFormatter(sep=" "))
    share_of = [row.peak_share / row.tokens_per_second for row in chart.rows if row.peak_share]
    if share_of and max(share_of) < 1.01 * min(share_of):
        factor = share_of[0]
        shares = ax.secondary_yaxis("right", functions=scaling(factor))
        shares.yaxis.set_major_locator(MaxNLocator(nbins=4))
        shares.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
        shares.set_ylabel("of the measured peak")
        shares.spines["right"].set_visible(False)
