"""What a tuned result promised against what was used, problem by problem, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from primus.artifacts.gemm import TunedRow
from primus.artifacts.run import TunedUse
from primus.gemm.backends.base import DEFAULT

_LINES = 20


@dataclass(frozen=True)
class Verdict:
    """One tuned problem.

    Attributes:
        used: the kernel that served most of its calls; empty where none was made.
        applied: None where there was nothing to apply.
    """

    problem: str
    calls: int
    chosen: str
    used: str
    applied: bool | None
    why: str


def verdicts(rows: Sequence[TunedRow], use: TunedUse) -> list[Verdict]:
    """What became of every row of a tuned result, in its order."""
    told = {row["problem"]: row for row in use.problems}
    return [_verdict(row, told.get(row.text, {})) for row in rows]


def _verdict(row: TunedRow, told: dict[str, object]) -> Verdict:
    calls, kind = int(str(told.get("calls", 0))), told.get("use", "unused")
    why = str(told.get("why", "")) or ("" if told else "never called")
    used = str(told.get("candidate", DEFAULT)) if calls and kind == "hit" else DEFAULT
    applied: bool | None = kind == "hit" and calls > 0
    if row.candidate == DEFAULT:
        applied, why = None, why if kind == "rejection" else ""
    elif not calls and row.tokens is not None:
        applied, why = None, "experts received other numbers of tokens"
    return Verdict(row.text, calls, row.candidate, used if calls else "", applied, why)


def failures(found: Sequence[Verdict]) -> list[Verdict]:
    """Tuned problems that were not applied."""
    return [verdict for verdict in found if verdict.applied is False]


def table(found: Sequence[Verdict]) -> Iterator[str]:
    """Lines of a table of all problems."""
    width = max([7, *(len(verdict.problem) for verdict in found)])
    yield f"{'problem':<{width}} {'calls':>8}  {'chosen':<16} {'used':<16} verdict"
    for verdict in found:
        head = f"{verdict.problem:<{width}} {verdict.calls:>8}  "
        yield f"{head}{verdict.chosen:<16} {verdict.used:<16} {_word(verdict)}".rstrip()


def _word(verdict: Verdict) -> str:
    word = {True: "applied", False: "NOT APPLIED", None: "nothing to apply"}[verdict.applied]
    return f"{word}: {verdict.why}" if verdict.why else word


def summary(rows: Sequence[TunedRow], use: TunedUse) -> Iterator[str]:
    """A few lines about what became of a result."""
    source = "" if use.counted == "run" else " in the verification"
    yield (
        f"tuned GEMMs{source}: {use.hits:,} calls took a tuned kernel, for {use.defaults:,} the "
        f"default is best, {use.misses:,} are not in the result, {use.rejections:,} were rejected"
    )
    ours = [verdict for verdict in verdicts(rows, use) if verdict.chosen != DEFAULT]
    ours.sort(key=lambda verdict: (verdict.applied is not False, -verdict.calls))
    for verdict in ours[:_LINES]:
        yield f"  {verdict.problem}: {verdict.chosen}, {verdict.calls:,} calls, {_word(verdict)}"
    if len(ours) > _LINES:
        yield f"  and {len(ours) - _LINES} further tuned problems, in train.json"
