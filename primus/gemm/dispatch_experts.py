"""Products of experts: the number of tokens changes at every call, and few numbers were tuned."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from primus.artifacts.gemm import Tokens
from primus.gemm.backends.base import DEFAULT
from primus.gemm.kernels import KERNELS, Accumulate, Mm, accumulate_default
from primus.gemm.problem import Problem
from primus.gemm.served import Tally, Use, accumulated, decide
from primus.gemm.tuned import TunedResult

# A tuned kernel serves numbers of tokens down to this part of the smallest tuned one, and up to
# this multiple of the largest.
_BEYOND = 2.0
# Layouts of operands that are remembered; beyond, all are forgotten and learned again.
_REMEMBERED = 1 << 14


@dataclass(frozen=True)
class _How:
    """How a call is served.

    Attributes:
        problem: whose row counts it: a tuned problem, or the family, with one token.
    """

    problem: Problem
    use: Use
    whose: Literal["itself", "nearest", "family"]


class _Served:
    """What serves all calls of one kind, and how often it has."""

    __slots__ = ("accumulate", "calls", "how", "mm")

    def __init__(self, how: _How) -> None:
        kernel = KERNELS[how.use.candidate] if how.use.kind == "hit" else None
        self.mm: Mm = kernel.mm if kernel else torch.mm
        self.accumulate: Accumulate = kernel.accumulate if kernel else accumulate_default
        self.how, self.calls = how, 0


class ExpertGemm:
    """Serves products by the nearest tuned number of tokens, in the ratio of the numbers.

    What is kept per layout of operands is bounded, and what is counted grows only with the
    problems that were tuned.
    """

    def __init__(self, dimension: Tokens, tuned: TunedResult | None) -> None:
        self._dimension = dimension
        self._exact = tuned.candidates if tuned is not None else {}
        self._families: dict[Problem, list[Problem]] = {}
        for row in tuned.rows if tuned is not None else ():
            if row.tokens == dimension:
                problem = Problem.from_json(row.problem)
                self._families.setdefault(self._family(problem), []).append(problem)
        self._remembered: dict[Hashable, _Served] = {}
        self._served: dict[_How, _Served] = {}

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """`a @ b`, as `GemmDispatcher.mm`."""
        key = (a.shape, a.stride(), b.shape, b.stride(), a.dtype)
        served = self._remembered.get(key)
        if served is None:
            served = self._remember(key, Problem.from_mm(a, b))
        served.calls += 1
        return served.mm(a, b)

    def mm_accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """`out += a @ b`, as `GemmDispatcher.mm_accumulate`."""
        key = (a.shape, a.stride(), b.shape, b.stride(), a.dtype, out.stride(), out.dtype)
        served = self._remembered.get(key)
        if served is None:
            served = self._remember(key, accumulated(a, b, out))
        served.calls += 1
        return served.accumulate(a, b, out)

    def varying(self, dimension: Tokens) -> ExpertGemm:
        """Itself, for its own dimension.

        Raises:
            ValueError: it serves the other one.
        """
        if dimension != self._dimension:
            raise ValueError(f"serves products that vary in {self._dimension}, not {dimension}")
        return self

    def tell(self, tally: Tally) -> None:
        """Add what was served to `tally`."""
        for how, served in self._served.items():
            text = self._text(how.problem) if how.whose == "family" else str(how.problem)
            nearest = served.calls if how.whose == "nearest" else 0
            tally.add(text, how.use, served.calls, nearest=nearest)

    def _remember(self, key: Hashable, problem: Problem) -> _Served:
        if len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        how = self._find(problem)
        served = self._served.get(how)
        if served is None:
            served = self._served[how] = _Served(how)
        self._remembered[key] = served
        return served

    def _find(self, problem: Problem) -> _How:
        if problem in self._exact:
            return _How(problem, decide(problem, self._exact[problem]), "itself")
        family = self._family(problem)
        tuned = self._families.get(family)
        if tuned is None:
            return _How(family, decide(problem, None), "family")
        tokens = self._tokens(problem)
        numbers = [self._tokens(other) for other in tuned]
        if not min(numbers) / _BEYOND <= tokens <= max(numbers) * _BEYOND:
            least, most = min(numbers) / _BEYOND, max(numbers) * _BEYOND
            why = f"tuned for {math.ceil(least)} to {math.floor(most)} tokens"
            return _How(family, Use("miss", DEFAULT, why), "family")
        nearest = sorted(tuned, key=lambda other: abs(math.log(self._tokens(other) / tokens)))
        for other in nearest:
            use = decide(problem, self._exact[other])
            if use.kind != "rejection":
                return _How(other, use, "nearest")
        return _How(family, decide(problem, self._exact[nearest[0]]), "family")

    def _tokens(self, problem: Problem) -> int:
        return problem.n if self._dimension == "n" else problem.k

    def _family(self, problem: Problem) -> Problem:
        """The problem without its number of tokens."""
        return replace(problem, n=1) if self._dimension == "n" else replace(problem, k=1)

    def _text(self, problem: Problem) -> str:
        sizes = {"m": problem.m, "n": problem.n, "k": problem.k}
        whole = "x".join(str(size) for size in sizes.values())
        named = "x".join(str(size) for size in (sizes | {self._dimension: "*"}).values())
        return str(problem).replace(whole, named, 1)
