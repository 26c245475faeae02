"""Run-time application: every 2-D product of the trainer's layers, at the cost of a look-up."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

import torch
from torch import Tensor

from primus.artifacts.run import TunedUse
from primus.gemm.dispatch_experts import ExpertGemm
from primus.gemm.kernels import KERNELS, Accumulate, Mm, accumulate_default, dispatchable
from primus.gemm.problem import Problem
from primus.gemm.served import Tally, Use, accumulated, decide
from primus.gemm.stack import Stack
from primus.gemm.tuned import TunedResult


class _Entry:
    """What serves one layout of operands, and how often it has."""

    __slots__ = ("accumulate", "calls", "mm", "problem")

    def __init__(self, problem: Problem, mm: Mm, accumulate: Accumulate) -> None:
        self.problem, self.mm, self.accumulate, self.calls = problem, mm, accumulate, 0


class GemmDispatcher:
    """Calls the tuned kernel for each product that it knows, and `torch.mm` for the rest.

    It records no autograd: call it in the forward and backward of an `autograd.Function`, or
    under `torch.no_grad()`. Without a result every call is a miss and goes to `torch.mm`, so that
    a `GemmRecorder` around an untuned step sees exactly the problems that are looked up here.

    Counting costs one addition per call; `use` sorts it out afterwards. One thread at a time.
    """

    def __init__(self, tuned: TunedResult | None = None) -> None:
        self._candidates = tuned.candidates if tuned is not None else {}
        self._entries: dict[Hashable, _Entry] = {}
        self._uses: dict[Problem, Use] = {}
        self._varying = {
            "n": ExpertGemm("n", tuned),
            "k": ExpertGemm("k", tuned),
        }

    @classmethod
    def load(cls, path: Any, stack: Stack) -> GemmDispatcher:
        """A dispatcher for a tuned.jsonl, after checking that it holds for `stack`.

        Raises:
            ArtifactError: the file is missing, torn or of another version.
            StackMismatchError: it was tuned on another stack.
        """
        tuned = TunedResult.load(path)
        tuned.check_stack(stack)
        return cls(tuned)

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """`a @ b`, row-major.

        Args:
            a, b: [M, K] and [K, N], of one dtype; either may be a transposed view.
        """
        entry = self._entries.get((a.shape, a.stride(), b.shape, b.stride(), a.dtype))
        if entry is None:
            entry = self._add_mm(a, b)
        entry.calls += 1
        return entry.mm(a, b)

    def mm_accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """`out += a @ b`, in place.

        Where `out` has the operands' dtype this is one GEMM with beta = 1. Into a float32 buffer
        from lower precision it is the problem of `mm(a, b)` and an addition, and is looked up and
        counted as that problem.

        Args:
            a, b: [M, K] and [K, N], of one dtype.
            out: [M, N], of that dtype or float32; not part of an autograd graph.
        """
        key = (a.shape, a.stride(), b.shape, b.stride(), a.dtype, out.stride(), out.dtype)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._add_accumulate(a, b, out, key)
        entry.calls += 1
        return entry.accumulate(a, b, out)

    def varying(self, dimension: Literal["n", "k"]) -> ExpertGemm:
        """For products of experts: a size that was not tuned takes the kernel of the nearest."""
        return self._varying[dimension]

    def _add_mm(self, a: Tensor, b: Tensor) -> _Entry:
        entry = self._entry(Problem.from_mm(a, b))
        self._entries[a.shape, a.stride(), b.shape, b.stride(), a.dtype] = entry
        return entry

    def _add_accumulate(self, a: Tensor, b: Tensor, out: Tensor, key: Hashable) -> _Entry:
        self._entries[key] = entry = self._entry(accumulated(a, b, out))
        return entry

    def _entry(self, problem: Problem) -> _Entry:
        use = self._uses.get(problem)
        if use is None:
            use = self._uses[problem] = decide(problem, self._candidates.get(problem))
        if use.kind != "hit":
            return _Entry(problem, torch.mm, accumulate_default)
        kernel = KERNELS[use.candidate]
        return _Entry(problem, kernel.mm, kernel.accumulate)

    def use(self) -> TunedUse:
        """What has become of every call so far; problems of the result without a call included."""
        tally = Tally()
        for entry in self._entries.values():
            tally.add(str(entry.problem), self._uses[entry.problem], entry.calls)
        for gemm in self._varying.values():
            gemm.tell(tally)
        for problem in sorted(self._candidates, key=Problem.sort_key):
            reason = dispatchable(problem) or "never called"
            tally.add(str(problem), Use("unused", self._candidates[problem], reason), 0)
        return tally.use()
