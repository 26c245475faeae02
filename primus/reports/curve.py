"""metrics.jsonl as one curve: the rows that are part of the result, and those run again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from statistics import multimode
from typing import TypeVar

from pydantic import ValidationError

from primus.artifacts.run import (
    ROWS,
    Attempt,
    ExpertRow,
    MemoryRow,
    MetricsRow,
    Row,
    ValidationRow,
    WatchRow,
)
from primus.errors import ArtifactError
from primus.files import parse_json


@dataclass(frozen=True, kw_only=True)
class Span:
    """The iterations `base < i <= last` that an attempt contributed to the result."""

    attempt: int
    base: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The metrics of a run over all attempts.

    Attributes:
        train, valid: rows that are part of the result, by iteration.
        watched: what the run noticed in iterations that are part of the result.
        superseded: training rows of iterations that a later attempt ran again.
        spans: per attempt what it contributed.
        lost: by attempt the iterations that it ran, and a later one again, logged or not.
        memory: of all attempts, in the order of writing.
        experts: as `train`.
        bad_lines: `file:line` of every line that is no row.
    """

    train: list[MetricsRow]
    valid: list[ValidationRow]
    watched: list[WatchRow] = field(default_factory=list)
    superseded: list[MetricsRow] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)
    memory: list[MemoryRow] = field(default_factory=list)
    experts: list[ExpertRow] = field(default_factory=list)
    bad_lines: list[str] = field(default_factory=list)

    @property
    def lost_iterations(self) -> int:
        """Of all attempts."""
        return sum(self.lost.values())

    @property
    def final_loss(self) -> float:
        """Of the last row whose batch was not skipped; NaN without any."""
        return next((row.loss for row in reversed(self.train) if row.loss is not None), math.nan)

    def covered(self) -> Iterator[tuple[MetricsRow, int]]:
        """Every row of the result with the number of iterations that it averages over."""
        base = {span.attempt: span.base for span in self.spans}
        for attempt, rows in groupby(self.train, key=lambda row: row.attempt):
            before = base.get(attempt, 0)
            for row in rows:
                yield row, max(row.iteration - before, 0)
                before = row.iteration


def read_metrics(path: Path, attempts: Sequence[Attempt]) -> Curve:
    """Read metrics.jsonl and sort its rows into the result and what was run again.

    Raises:
        ArtifactError: the file is missing or holds no training row.
    """
    rows: list[Row] = []
    bad: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the metrics: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None:
            bad.append(f"{path.name}:{number}")
        else:
            rows.append(row)
    if not any(isinstance(row, MetricsRow) for row in rows):
        raise ArtifactError(f"{path}: holds no training row, so there is nothing to report")
    return _merge(rows, attempts, bad)


def _row(line: str) -> Row | None:
    try:
        content = parse_json(line)
        return ROWS.get(content.get("type"), MetricsRow).model_validate(content)
    except (ValueError, AttributeError, ValidationError):
        return None


def resume_base(attempt: Attempt) -> int:
    """The iteration after which an attempt started: that of the checkpoint it resumed from."""
    if attempt.resumed_from is None:
        return 0
    digits = re.search(r"(\d+)$", attempt.resumed_from)
    return int(digits.group(1)) if digits else attempt.first_iteration


AnyRow = TypeVar("AnyRow", MetricsRow, ValidationRow, WatchRow, MemoryRow, ExpertRow)


def _merge(rows: Sequence[Row], attempts: Sequence[Attempt], bad: list[str]) -> Curve:
    """Keep of each attempt what no later attempt ran again."""
    train = _of(rows, MetricsRow)
    base = {attempt.number: resume_base(attempt) for attempt in attempts}
    last = {attempt.number: attempt.last_iteration for attempt in attempts}
    for row in train:
        # Without a readable record it began before its first row, where an earlier one had come to.
        before = max((last[number] for number in last if number < row.attempt), default=0)
        base.setdefault(row.attempt, min(row.iteration - 1, before))
        last[row.attempt] = max(last.get(row.attempt, 0), row.iteration)
    end: dict[int, float] = {}
    bound = float("inf")
    for number in sorted(base, reverse=True):
        end[number] = bound
        bound = min(bound, base[number])

    def kept(kind: type[AnyRow]) -> list[AnyRow]:
        found = _of(rows, kind)
        return [row for row in found if row.iteration <= end.get(row.attempt, float("inf"))]

    return Curve(
        train=sorted(kept(MetricsRow), key=_place),
        valid=sorted(kept(ValidationRow), key=_place),
        watched=kept(WatchRow),
        superseded=[row for row in train if row.iteration > end[row.attempt]],
        spans=[
            Span(attempt=number, base=base[number], last=int(min(end[number], last[number])))
            for number in sorted(base)
            if min(end[number], last[number]) > base[number]
        ],
        lost={
            before: last[before] - base[after]
            for before, after in pairwise(sorted(base))
            if last[before] > base[after]
        },
        memory=_of(rows, MemoryRow),
        experts=sorted(kept(ExpertRow), key=_place),
        bad_lines=bad,
    )


def _of(rows: Sequence[Row], kind: type[AnyRow]) -> list[AnyRow]:
    return [row for row in rows if isinstance(row, kind)]


def _place(row: Row) -> tuple[int, int]:
    return row.iteration, row.attempt


def gaps(curve: Curve, log_interval: int | None) -> list[str]:
    """Where rows are missing or contradict each other, in words; empty for complete metrics.

    A row may stand at most one log interval behind the row before it. The interval is what most
    rows of an attempt keep to, because it may differ between attempts.
    """
    found = []
    rows_of = {
        number: [row.iteration for row in curve.train if row.attempt == number]
        for number in {row.attempt for row in curve.train}
    }
    for span in curve.spans:
        iterations = rows_of.get(span.attempt, [])
        steps = [after - before for before, after in pairwise(iterations)]
        if any(step <= 0 for step in steps):
            found.append(f"attempt {span.attempt} logs an iteration twice")
        positive = [step for step in steps if step > 0]
        interval = max(multimode(positive)) if len(positive) > 1 else log_interval
        if interval is None:
            continue
        marks = [span.base, *iterations, span.last]
        found += [
            f"attempt {span.attempt} logs nothing between iterations {before} and {after}"
            for before, after in pairwise(marks)
            if after - before > interval
        ]
    covered = 0
    for span in curve.spans:
        if span.base > covered:
            found.append(f"no attempt ran iterations {covered + 1} to {span.base}")
        covered = max(covered, span.last)
    return found


def replay_differences(curve: Curve) -> tuple[int, list[int]]:
    """Iterations logged by two attempts: how many, and where the losses are not bitwise equal."""
    result = {row.iteration: row.loss for row in curve.train}
    twice = [row for row in curve.superseded if row.iteration in result]
    return len(twice), [row.iteration for row in twice if row.loss != result[row.iteration]]
