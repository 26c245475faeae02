"""A comparison as one self-contained page, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence

from primus.artifacts.comparison import ComparisonManifest
from primus.reports.comparison.figures import draw_figures
from primus.reports.comparison.read import Run
from primus.reports.comparison.table import changes, figures, shown
from primus.reports.template import render_template

MARKS = {"warning": "!", "failed": "✗"}
VERDICTS = {
    "passed": "its report found nothing amiss",
    "warnings": "its report has warnings",
    "failed": "its report says that it FAILED integrity",
    None: "no report of its files as they are",
}


def render(comparison: ComparisonManifest, runs: Sequence[Run]) -> str:
    """The whole page; the figures are the only markup that is passed through."""
    return render_template(
        "compare.html.j2",
        comparison=comparison,
        drawn=draw_figures(comparison, runs),
        figures=list(figures(comparison.runs)),
        shown=shown,
        changes=changes,
        marks=MARKS,
        verdicts=VERDICTS,
    )
