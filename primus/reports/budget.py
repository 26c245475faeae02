"""Where the time of a run went: its parts in seconds, and what each attempt was at when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from primus.artifacts.report import TimeBudget
from primus.artifacts.run import Attempt, MetricsRow, ValidationRow
from primus.reports.curve import Curve, resume_base

Kind = Literal["queue", "between", "start", "train", "lost", "end"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What an attempt was at between two moments, in seconds since the epoch.

    Attributes:
        kind: `queue` and `between` lie before it; `train` are iterations of the result with their
            validations and saves, `lost` those that were run again; `end` is what is left.
    """

    kind: Kind
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.begin


def ended(attempt: Attempt, curve: Curve) -> float:
    """When an attempt ended; the time of its last row where it was killed without a word."""
    if attempt.finished is not None:
        return attempt.finished
    rows: list[MetricsRow | ValidationRow] = [*curve.train, *curve.superseded, *curve.valid]
    times = [row.time for row in rows if row.attempt == attempt.number]
    return max(times, default=attempt.started)


def duration(attempt: Attempt, curve: Curve) -> float:
    """Seconds that an attempt ran."""
    return max(ended(attempt, curve) - attempt.started, 0.0)


def device_hours(attempts: Sequence[Attempt], curve: Curve) -> float:
    """What all attempts took: their durations times their ranks."""
    return sum(duration(attempt, curve) * attempt.world_size for attempt in attempts) / 3600


def begun(attempts: Sequence[Attempt]) -> float:
    """When a run began: its first start, or when the job of that was submitted."""
    first = min(attempts, key=lambda attempt: attempt.started)
    return min(first.started, first.submitted or math.inf)


def wall_seconds(attempts: Sequence[Attempt], curve: Curve) -> float:
    """From the beginning to the end of the last attempt."""
    return max(ended(attempt, curve) for attempt in attempts) - begun(attempts)


def phases(attempts: Sequence[Attempt], curve: Curve) -> dict[int, list[Phase]]:
    """By number of the attempt what it was at, one phase after the other, none of them empty."""
    found = {}
    before = begun(attempts) if attempts else 0.0
    for attempt in attempts:
        marks = [*_before(attempt, before), *_within(attempt, curve)]
        kept, at = [], min(before, attempt.started)
        for kind, end in marks:
            if end > at:
                kept.append(Phase(kind=kind, begin=at, end=end))
                at = end
        found[attempt.number] = kept
        before = max(before, ended(attempt, curve))
    return found


def _before(attempt: Attempt, before: float) -> list[tuple[Kind, float]]:
    """Ends of what lies between `before`, when nothing ran any more, and the attempt's start."""
    marks: list[tuple[Kind, float]] = []
    if attempt.submitted is not None:
        # A job that runs its second attempt waited before the first one.
        left = min(attempt.job_started or attempt.started, attempt.started)
        marks = [("between", min(attempt.submitted, left)), ("queue", left)]
    return [*marks, ("between", attempt.started)]


def _within(attempt: Attempt, curve: Curve) -> list[tuple[Kind, float]]:
    end = attempt.started + duration(attempt, curve)
    rows = sorted(
        (row for row in (*curve.train, *curve.superseded) if row.attempt == attempt.number),
        key=lambda row: row.time,
    )
    if not rows:
        return [("start", end)]
    first = _first_iteration(attempt, curve, rows[0])
    kept = [row.time for row in curve.train if row.attempt == attempt.number]
    last = max(kept, default=first)
    marks: list[tuple[Kind, float]] = [("start", first), ("train", last)]
    if curve.lost.get(attempt.number):
        marks.append(("lost", max(rows[-1].time, last)))
    return [(kind, min(mark, end)) for kind, mark in marks] + [("end", end)]


def _first_iteration(attempt: Attempt, curve: Curve, row: MetricsRow) -> float:
    """When the first iteration began, by the attempt's first row."""
    count = max(row.iteration - resume_base(attempt), 1)
    validated = sum(
        valid.seconds
        for valid in curve.valid
        if valid.attempt == attempt.number and valid.iteration < row.iteration
    )
    begin = row.time - row.seconds_per_iteration * count - validated
    return max(begin, attempt.started)


def time_budget(
    curve: Curve, attempts: Sequence[Attempt], wall: float, spent: Mapping[int, Sequence[Phase]]
) -> TimeBudget:
    """Split the wall time; the parts add up to it, except where the clocks disagree.

    Args:
        wall: see `wall_seconds`. spent: see `phases`.
    """
    iterations = sum(row.seconds_per_iteration * count for row, count in curve.covered())
    data = sum((row.data_seconds or 0.0) * count for row, count in curve.covered())
    pace = median(row.seconds_per_iteration for row in curve.train)

    def of(kind: Kind, *numbers: int) -> float:
        which = [phase for number in numbers or spent for phase in spent[number]]
        return sum(phase.seconds for phase in which if phase.kind == kind)

    numbers = [attempt.number for attempt in attempts]
    parts = {
        "compute": iterations - data,
        "data": data,
        "validation": sum(row.seconds for row in curve.valid),
        "saving": sum(attempt.save_seconds for attempt in attempts),
        "start": of("start", *numbers[:1]) if numbers else 0.0,
        "restart": of("start", *numbers[1:]) if numbers[1:] else 0.0,
        "lost": curve.lost_iterations * pace,
        "queue": of("queue"),
        "between": of("between"),
    }
    return TimeBudget(other=max(wall - sum(parts.values()), 0.0), **parts)
