"""Every figure of a report."""

from __future__ import annotations

from primus.artifacts.report import Headline
from primus.reports.figures import draw_curves
from primus.reports.inputs import Inputs
from primus.reports.resources import draw_resources
from primus.reports.timeline import draw_timeline


def draw_figures(inputs: Inputs, headline: Headline) -> dict[str, str]:
    """As inline SVG, by name; those that the run has nothing for are not there."""
    return draw_curves(inputs, headline) | draw_timeline(inputs) | draw_resources(inputs)
