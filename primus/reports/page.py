"""From everything known about a run to one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from primus.artifacts.report import Headline
from primus.artifacts.steps import DEFAULT_PROCESS, PLAIN_MALLOC, TUNED, TUNED_PLAIN, UNTUNED
from primus.reports.budget import duration, ended
from primus.reports.curve import resume_base
from primus.reports.figures import draw_figures
from primus.reports.gemm import in_training, strangers
from primus.reports.inputs import Inputs, StageValues
from primus.reports.integrity import Judgement
from primus.reports.reproduce import reproduction
from primus.reports.template import render_template

VERDICTS = {
    "passed": "Finished and verified",
    "warnings": "Finished and verified, with warnings",
    "failed": "FAILED integrity",
}
CONTESTANTS = {
    UNTUNED: "Default kernels",
    TUNED: "Tuned kernels",
    TUNED_PLAIN: "Tuned kernels, malloc as it is",
}
PROCESSES = {
    DEFAULT_PROCESS: "the settings of malloc that are the default here",
    PLAIN_MALLOC: "the C library's malloc as it is",
}
MARKS = {"ok": "✓", "warning": "!", "failed": "✗", "absent": "·"}


def render(inputs: Inputs, headline: Headline, judgement: Judgement) -> str:
    """The whole page; the figures are the only markup that is passed through."""
    return render_template(
        "report.html.j2",
        inputs=inputs,
        train=inputs.train,
        headline=headline,
        judgement=judgement,
        verdict=VERDICTS[judgement.verdict],
        marks=MARKS,
        figures=draw_figures(inputs, headline),
        attempts=_attempts(inputs),
        budget=_budget(headline),
        stages=[_stage(values) for values in inputs.settings],
        in_training=partial(in_training, inputs.train.tuned),
        strangers=strangers(inputs.train.tuned, inputs.tuning.rows if inputs.tuning else []),
        contestants=CONTESTANTS,
        processes=PROCESSES,
        reproduction=reproduction(inputs),
    )


def _attempts(inputs: Inputs) -> list[dict[str, Any]]:
    """Attempts with their place on the common time line, as shares of the whole."""
    if not inputs.attempts:
        return []
    begin = min(attempt.started for attempt in inputs.attempts)
    end = max(ended(attempt, inputs.curve) for attempt in inputs.attempts)
    whole = max(end - begin, 1e-9)
    rows = (*inputs.curve.train, *inputs.curve.superseded)
    logged = {attempt.number: attempt.last_iteration for attempt in inputs.attempts}
    for row in rows:
        logged[row.attempt] = max(logged.get(row.attempt, 0), row.iteration)
    return [
        {
            "record": attempt,
            "base": resume_base(attempt),
            "last": logged[attempt.number],
            "seconds": duration(attempt, inputs.curve),
            "left": (attempt.started - begin) / whole,
            "width": duration(attempt, inputs.curve) / whole,
        }
        for attempt in inputs.attempts
    ]


def _budget(headline: Headline) -> list[tuple[str, str, float, float]]:
    """Parts of the wall time: name, explanation, seconds, share."""
    parts, whole = headline.time_budget, headline.wall_seconds
    named = (
        ("compute", "iterations of the result", parts.compute),
        ("validation", "validation passes", parts.validation),
        ("saving", "waiting for checkpoints to be written", parts.saving),
        ("other", "start-up, resuming, logging", parts.other),
        ("lost", "iterations run again", parts.lost),
        ("between", "waiting between attempts", parts.between),
    )
    total = max(whole, sum(seconds for *_, seconds in named), 1e-9)
    return [(name, what, seconds, seconds / total) for name, what, seconds in named if seconds > 0]


def _stage(values: StageValues) -> dict[str, Any]:
    """Settings of a stage as rows: dotted key, value, what a change of it means."""
    groups = {"identity": values.identity, "extent": values.extent, "option": values.options}
    rows = [(name, value, kind) for kind, group in groups.items() for name, value in flatten(group)]
    return {"stage": values.stage, "key": values.key, "rows": sorted(rows, key=lambda row: row[0])}


def flatten(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested groups of settings as dotted keys."""
    rows: list[tuple[str, Any]] = []
    for name, value in group.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
