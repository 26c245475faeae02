"""Problems that hipBLASLt's override cannot tell apart, and the one solution that serves them.

The library looks a problem up by transposes, sizes, batch count, the types of A, B and C and the
compute type. Leading dimensions, strides, alpha, beta, bias, epilogue, the type of D and scales
play no part. Source: `ProblemOverride` in ROCm/hipBLASLt.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from primus.artifacts.gemm import TunedRow
from primus.gemm.backends.base import DEFAULT
from primus.gemm.problem import Problem

_KEY = ("transA", "transB", "batch_count", "m", "n", "k", "a_type", "b_type", "c_type")


def lookup_key(problem: Problem) -> tuple[Any, ...]:
    """What hipBLASLt's override looks a problem up by."""
    return (*(getattr(problem, name) for name in _KEY), problem.compute_type)


@dataclass(frozen=True)
class Served:
    """The problems of one key and the solution that is written for them.

    Attributes:
        rows: all rows of the key, those whose own choice is the default too.
        source: the row whose solution was taken; None where the default stays.
        totals: microseconds of a microbatch over all rows, by candidate.
        assumed: (candidate, problem's text) pairs whose time was not measured.
    """

    rows: tuple[TunedRow, ...]
    candidate: str
    source: TunedRow | None
    totals: dict[str, float]
    assumed: tuple[tuple[str, str], ...] = ()

    @property
    def collides(self) -> bool:
        """Whether rows that wanted different kernels share the key."""
        return len({row.candidate for row in self.rows}) > 1

    def describe(self) -> str:
        """One line for the person who tunes."""
        texts = " | ".join(f"{row.text}: {row.candidate}" for row in self.rows)
        totals = ", ".join(f"{name} {us:.1f} us" for name, us in sorted(self.totals.items()))
        guess = "; taken as its default's time where not measured" if self.assumed else ""
        return f"{texts}; kept {self.candidate} for all ({totals} per microbatch{guess})"


def serve(
    rows: Sequence[TunedRow], key: Callable[[Problem], Hashable] = lookup_key
) -> list[Served]:
    """One solution per key: the least time over all calls of its problems.

    A solution that was not measured on one of the problems counts there as the default does.
    """
    groups: dict[Hashable, list[TunedRow]] = {}
    for row in rows:
        groups.setdefault(key(Problem.from_json(row.problem)), []).append(row)
    return [_serve(tuple(group)) for group in groups.values()]


def _serve(rows: tuple[TunedRow, ...]) -> Served:
    wanted = sorted({row.candidate for row in rows} | {DEFAULT})
    totals: dict[str, float] = {}
    assumed: list[tuple[str, str]] = []
    for name in wanted:
        totals[name] = 0.0
        for row in rows:
            us = row.times.get(name)
            if us is None:
                us = row.default_us or 0.0
                assumed.append((name, row.text))
            totals[name] += row.calls * us
    best = min(wanted, key=lambda name: (totals[name], name != DEFAULT, name))
    sources = [row for row in rows if row.candidate == best != DEFAULT]
    source = max(sources, key=lambda row: row.calls * (row.default_us or 0.0), default=None)
    return Served(rows, best, source, totals, tuple(assumed))
