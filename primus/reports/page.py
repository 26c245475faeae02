"""From everything known about a run to one self-contained page."""

from __future__ import annotations

from functools import partial
from typing import Any

from primus.artifacts.report import Headline
from primus.artifacts.steps import DEFAULT_PROCESS, PLAIN_MALLOC, TUNED, TUNED_PLAIN, UNTUNED
from primus.reports.budget import duration
from primus.reports.curve import resume_base
from primus.reports.drawn import draw_figures
from primus.reports.flat import flatten
from primus.reports.gemm import in_training, strangers
from primus.reports.inputs import Inputs, StageValues
from primus.reports.integrity import Judgement
from primus.reports.nodes import node_rows
from primus.reports.nodes import verdict as nodes_verdict
from primus.reports.preset import preset_differences
from primus.reports.reproduce import reproduction
from primus.reports.resources import MOST_DOTS
from primus.reports.tables import fingerprints, interruptions, layout
from primus.reports.template import render_template
from primus.reports.timeline import MOST

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
        interruptions=interruptions(inputs),
        layout=layout(inputs),
        fingerprints=fingerprints(inputs),
        preset=preset_differences(inputs),
        nodes={number: node_rows(found) for number, found in inputs.preflights.items()},
        verdict_on_nodes=nodes_verdict,
        most_attempts=MOST,
        most_dots=MOST_DOTS,
        facts=_facts(headline, judgement),
        on_cpu=inputs.setting("train", "platform") in (None, "cpu"),
        stages=[stage for stage in map(_stage, inputs.settings) if stage["rows"]],
        in_training=partial(in_training, inputs.train.tuned),
        strangers=strangers(inputs.train.tuned, inputs.tuning.rows if inputs.tuning else []),
        contestants=CONTESTANTS,
        processes=PROCESSES,
        reproduction=reproduction(inputs),
    )


def _facts(headline: Headline, judgement: Judgement) -> list[tuple[str, str]]:
    """What page one says besides the verdict: outcome and words."""
    outcome = {check.name: check.outcome for check in judgement.checks}
    failed = sum(check.outcome == "failed" for check in judgement.checks)
    warned = sum(check.outcome == "warning" for check in judgement.checks)
    done, wanted = headline.iterations, headline.train_iters
    target = f"{done:,} of {wanted:,} iterations" if wanted is not None else f"{done:,} iterations"
    return [
        (outcome["Finished"], "finished" if outcome["Finished"] == "ok" else "not finished"),
        (outcome["Target reached"], target),
        ("failed", f"{failed} check{'' if failed == 1 else 's'} failed")
        if failed
        else ("ok", "integrity verified"),
        ("warning" if warned else "ok", f"{warned} warning{'' if warned == 1 else 's'}"),
    ]


def _attempts(inputs: Inputs) -> list[dict[str, Any]]:
    """Attempts with what they came to."""
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
        }
        for attempt in inputs.attempts
    ]


def _budget(headline: Headline) -> list[tuple[str, str, float, float]]:
    """Parts of the wall time: name, explanation, seconds, share."""
    parts, whole = headline.time_budget, headline.wall_seconds
    named = (
        ("compute", "iterations of the result: computing", parts.compute),
        ("data", "iterations of the result: waiting for samples", parts.data),
        ("validation", "validation passes", parts.validation),
        ("saving", "waiting for checkpoints to be written", parts.saving),
        ("start", "start-up of the first attempt", parts.start),
        ("restart", "start-up after interruptions", parts.restart),
        ("lost", "iterations run again", parts.lost),
        ("queue", "in the queue", parts.queue),
        ("between", "between attempts otherwise", parts.between),
        ("other", "logging, ending, and the rest", parts.other),
    )
    total = max(whole, sum(seconds for *_, seconds in named), 1e-9)
    return [(name, what, seconds, seconds / total) for name, what, seconds in named if seconds > 0]


def _stage(values: StageValues) -> dict[str, Any]:
    """Settings of a stage as rows: dotted key, value, what a change of it means."""
    groups = {"identity": values.identity, "extent": values.extent, "option": values.options}
    rows = [(name, value, kind) for kind, group in groups.items() for name, value in flatten(group)]
    return {"stage": values.stage, "key": values.key, "rows": sorted(rows, key=lambda row: row[0])}
