"""How a product is served, and what came of all of them: hits, defaults, misses, rejections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from primus.artifacts.run import TunedUse
from primus.gemm.backends.base import DEFAULT
from primus.gemm.kernels import KERNELS, dispatchable
from primus.gemm.problem import Problem

Kind = Literal["hit", "default", "miss", "rejection", "unused"]


@dataclass(frozen=True)
class Use:
    """How a problem is served, and why not by the tuned kernel."""

    kind: Kind
    candidate: str
    why: str = ""


def decide(problem: Problem, candidate: str | None) -> Use:
    """How to serve a problem for which `candidate` was chosen; None: it was not tuned."""
    if candidate is None:
        return Use("miss", DEFAULT, "not in the tuned result")
    if candidate == DEFAULT:
        return Use("default", DEFAULT)
    kernel = KERNELS.get(candidate)
    if kernel is None:
        return Use("rejection", DEFAULT, f"{candidate} is not known here")
    reason = dispatchable(problem)
    if reason is None and not kernel.legal(problem):
        reason = "it cannot compute this problem here"
    if reason is not None:
        return Use("rejection", DEFAULT, f"{candidate}: {reason}")
    return Use("hit", candidate)


def accumulated(a: Tensor, b: Tensor, out: Tensor) -> Problem:
    """The problem of `out += a @ b`; into a buffer of another dtype that of `a @ b` alone."""
    if out.dtype != a.dtype:
        return Problem.from_mm(a, b)
    return Problem.from_addmm(out, a, b, out=out)


@dataclass
class Tally:
    """Adds up calls per problem, in the order in which the problems are first told."""

    _rows: dict[str, Counter[Use]] = field(default_factory=dict)
    _nearest: Counter[str] = field(default_factory=Counter)

    def add(self, problem: str, use: Use, calls: int, *, nearest: int = 0) -> None:
        """Count `calls` of a problem, by its one-line text.

        Args:
            nearest: how many of them had another number of tokens than the problem, and took its
                kernel because it is the nearest that was tuned.
        """
        self._rows.setdefault(problem, Counter())[use] += calls
        self._nearest[problem] += nearest

    def use(self) -> TunedUse:
        """The sums and a row per problem, which says how most of its calls were served."""
        totals: Counter[str] = Counter()
        for uses in self._rows.values():
            for use, calls in uses.items():
                totals[use.kind] += calls
        return TunedUse(
            hits=totals["hit"],
            defaults=totals["default"],
            misses=totals["miss"],
            rejections=totals["rejection"],
            problems=[self._row(problem, uses) for problem, uses in self._rows.items()],
        )

    def _row(self, problem: str, uses: Counter[Use]) -> dict[str, Any]:
        (most, _), *others = sorted(uses.items(), key=lambda item: -item[1])
        row = {"problem": problem, "calls": uses.total(), "use": most.kind}
        row["candidate"] = most.candidate
        why = [most.why] if most.why else []
        why += [_also(use, calls) for use, calls in others if calls]
        row |= {"why": "; ".join(why)} if why else {}
        return row | ({"nearest": self._nearest[problem]} if self._nearest[problem] else {})


def _also(use: Use, calls: int) -> str:
    return f"{calls} calls: {use.kind}" + (f", {use.why}" if use.why else "")
