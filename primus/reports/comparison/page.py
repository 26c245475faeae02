"""A comparison as one self-contained page, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from primus.artifacts.comparison import ComparisonManifest
from primus.reports.comparison.figures import draw_figures
from primus.reports.comparison.read import Run
from primus.reports.comparison.table import changes, figures, shown
from primus.reports.formats import FILTERS

MARKS = {"warning": "!", "failed": "✗"}
VERDICTS = {
    "passed": "its report found nothing amiss",
    "warnings": "its report has warnings",
    "failed": "its report says that it FAILED integrity",
    None: "no report of its files as they are",
}


def render(comparison: ComparisonManifest, runs: Sequence[Run]) -> str:
    """The whole page; every value is escaped, the figures are the only markup passed through."""
    environment = Environment(
        loader=PackageLoader("primus.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        drawn=draw_figures(comparison, runs),
        figures=list(figures(comparison.runs)),
        shown=shown,
        changes=changes,
        marks=MARKS,
        verdicts=VERDICTS,
    )
