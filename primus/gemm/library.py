"""The record of a GPU library's own log: what it says of training steps, and what it cannot see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from primus.artifacts.gemm import Tokens
from primus.errors import TrainingError
from primus.gemm.formats.stream import Dump
from primus.gemm.problem import Problem
from primus.gemm.record import Recorded

LIBRARY = {"cuda": "cublaslt", "rocm": "hipblaslt"}
# Share of the FLOPs that may lie outside the steps: warm-up, probes of other libraries.
OUTSIDE = 0.01
_NAMED = 5


class LibraryDump(Protocol):
    """`primus.gemm.<library>.dump`."""

    def environment(self, directory: Path) -> Mapping[str, str | None]:
        """Variables under which each process logs its calls into `directory`; None: unset."""

    def read(self, directory: Path) -> Dump[tuple[Problem, str]]:
        """Every call that was logged there: the problem and the name of the kernel."""


def library_dump(platform: str) -> LibraryDump:
    """How the library of a GPU platform logs."""
    module: Any = import_module(f"primus.gemm.{LIBRARY[platform]}.dump")
    return module  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Logged:
    """A library's log, sorted.

    Attributes:
        calls: per problem and micro-batch.
        outside: calls in all that belong to no micro-batch, because the micro-batches do not
            share them evenly.
        lines, skipped: of the log.
    """

    calls: Counter[Problem]
    outside: Counter[Problem]
    lines: int = 0
    skipped: int = 0

    @classmethod
    def of(cls, dump: Dump[tuple[Problem, str]], microbatches: int) -> Logged:
        """Share the calls of a dump among the micro-batches during which it was made.

        Raises:
            TrainingError: nothing was logged, or more than 1 % of the FLOPs lie outside.
        """
        total: Counter[Problem] = Counter()
        for (problem, _), number in dump.calls.items():
            total[problem] += number
        if not total:
            raise TrainingError(
                f"the library logged no GEMM in {dump.lines} lines. Fix: gemm_tuning.shapes: trace"
            )
        calls = Counter({p: n // microbatches for p, n in total.items() if n >= microbatches})
        outside = Counter({p: n % microbatches for p, n in total.items() if n % microbatches})
        found = cls(calls, outside, dump.lines, dump.skipped)
        share = _flops(outside) / _flops(total)
        if share > OUTSIDE:
            raise TrainingError(
                f"{share:.1%} of the FLOPs that the library logged are not the same in each of "
                f"{microbatches} micro-batches: {'; '.join(_largest(outside))}. "
                "Fix: raise gemm_tuning.record_iters, or set gemm_tuning.shapes to trace"
            )
        return found

    def varying(self, recorded: Recorded) -> dict[Problem, Tokens]:
        """Problems of experts, which torch's record of the same steps knows."""
        known = {_essence(problem): tokens for problem, tokens in recorded.varying.items()}
        return {p: known[_essence(p)] for p in self.calls if _essence(p) in known}

    def against(self, recorded: Recorded) -> Iterator[str]:
        """Lines about how this compares with what torch's dispatcher saw of the same steps."""
        here, there = _by_essence(self.calls.items()), _by_essence(_per_problem(recorded))
        both = here & there
        yield f"torch saw {both.total()} of {here.total()} GEMMs that the library logged"
        for title, more in (
            ("only in the library's log", here - there),
            ("only seen by torch", there - here),
        ):
            if more:
                names = "; ".join(_text(essence, n) for essence, n in more.most_common(_NAMED))
                rest = len(more) - _NAMED
                yield f"{title}: {more.total()} GEMMs: {names}" + (
                    f"; {rest} further problems" if rest > 0 else ""
                )
        if self.outside:
            yield f"outside the steps: {'; '.join(_largest(self.outside))}"


_Essence = tuple[str, int, int, int, int, str, str]


def _essence(problem: Problem) -> _Essence:
    """What torch and a library agree on; epilogues, scales and types of C differ."""
    p = problem
    return p.transA + p.transB, p.m, p.n, p.k, p.batch_count, p.a_type, p.b_type


def _text(essence: _Essence, calls: int) -> str:
    layout, m, n, k, batch, a_type, b_type = essence
    types = a_type if a_type == b_type else f"{a_type}/{b_type}"
    batches = f" x{batch}" if batch > 1 else ""
    return f"{calls} x {layout} {m}x{n}x{k} {types}{batches}"


def _by_essence(calls: Iterable[tuple[Problem, int]]) -> Counter[_Essence]:
    found: Counter[_Essence] = Counter()
    for problem, number in calls:
        found[_essence(problem)] += number
    return found


def _per_problem(recorded: Recorded) -> Iterator[tuple[Problem, int]]:
    for (problem, _), number in recorded.calls.items():
        yield problem, number


def _flops(calls: Counter[Problem]) -> int:
    return sum(problem.flops * number for problem, number in calls.items())


def _largest(calls: Counter[Problem]) -> list[str]:
    ordered = sorted(calls, key=lambda problem: -problem.flops * calls[problem])
    named = [f"{calls[problem]} x {problem}" for problem in ordered[:_NAMED]]
    return named + ([f"{len(ordered) - _NAMED} further problems"] if len(ordered) > _NAMED else [])
