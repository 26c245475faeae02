"""A comparison as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from primus.artifacts.comparison import ComparedRun, ComparisonManifest, SettingDifference
from primus.hidden import printable
from primus.reports.formats import MISSING, number, scaled, setting, share

# A longer value would push the others off the screen; the page has it whole.
_WIDEST = 48


def lines(comparison: ComparisonManifest) -> Iterator[str]:
    """Figures, what can be said of them, settings, environment, warnings."""
    yield from map(printable, _lines(comparison))


def _lines(comparison: ComparisonManifest) -> Iterator[str]:
    labels = [run.label for run in comparison.runs]
    rows = [[name, *values] for name, values in figures(comparison.runs)]
    yield from aligned(["", *labels], rows)
    yield ""
    yield from (one.words for one in comparison.throughput)
    yield from (one.words for one in comparison.losses)
    yield from comparison.notes
    yield ""
    if comparison.settings:
        heading = ["settings that differ", *labels, "changes"]
        yield from aligned(
            heading,
            [[row.key, *map(_short, shown(row)), changes(row)] for row in comparison.settings],
        )
    else:
        yield "no setting differs"
    if comparison.environment:
        yield ""
        yield from aligned(
            ["environment that differs", *labels],
            [
                [row.name, *(_short(value or MISSING) for value in row.values)]
                for row in comparison.environment
            ],
        )
    for one in comparison.runs:
        for check in one.warnings:
            yield f"{one.label}: {check.outcome}: {check.name}: {check.detail}"


def figures(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[str]]]:
    """Rows of the table of figures: a name, and the figure of each run."""
    yield "state", [run.state for run in runs]
    yield "iterations", [number(run.iteration) for run in runs]
    yield "tokens", [scaled(run.consumed_tokens) for run in runs]
    yield "training loss", [number(run.final_loss) for run in runs]
    if any(run.validation_loss is not None for run in runs):
        yield "validation loss", [number(run.validation_loss) for run in runs]
        yield "best validation loss", [number(run.best_validation_loss) for run in runs]
    rates = [run.tokens_per_second for run in runs]
    yield "tokens per second", [number(rate.median) for rate in rates]
    yield "5 % to 95 %", [f"{number(rate.p5)} to {number(rate.p95)}" for rate in rates]
    yield "TFLOP/s", [number(run.tflops_per_second.median, 3) for run in runs]
    if any(run.peak_share for run in runs):
        shares = [run.peak_share.median if run.peak_share else None for run in runs]
        yield "share of peak", [share(value) for value in shares]
    yield "rows", [f"{number(run.rows)} (and {run.warm_up_rows} of the warm-up)" for run in runs]


def shown(row: SettingDifference) -> list[str]:
    """The values of a key as text: "?" where one is not known."""
    return [
        ("?" if not known else MISSING if value is None else setting(value))
        for value, known in zip(row.values, row.known, strict=True)
    ]


def changes(row: SettingDifference) -> str:
    """The stages that a change of a key makes something else of, in words."""
    if row.stages:
        return ", ".join(row.stages)
    return "nothing that is made" if row.how == "option" else "not a key of today"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A heading and rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in (heading, *rows)) for i in range(len(heading) - 1)]
    for row in (heading, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
