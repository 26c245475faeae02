"""What a device can do at most, and so how fast no kernel for a problem can be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from primus.gemm.backends.base import Backend
from primus.gemm.pool import Pool
from primus.gemm.problem import Problem
from primus.gemm.store import Store

# Assumed where the peak could not be measured, in 10^12 FLOP/s: it orders the problems, no more.
_FALLBACK_TFLOPS = 0.1
_SECONDS = 120.0
# What only prunes must not eat up a small budget.
_SHARE_OF_BUDGET = 0.1


@dataclass(frozen=True)
class Limits:
    """Measured maxima of one stack.

    Attributes:
        tflops: of `torch.mm` in 10^12 FLOP/s, by type of the operands.
        gb_per_s: of the memory in 10^9 bytes per second; None where it was not measured.
    """

    tflops: Mapping[str, float]
    gb_per_s: float | None = None

    def estimate_us(self, problem: Problem, backend: Backend) -> float:
        """Rough microseconds of one call, known before anything is measured."""
        peak = self.tflops.get(problem.a_type, _FALLBACK_TFLOPS)
        bytes_per_us = backend.bytes_per_us if self.gb_per_s is None else self.gb_per_s * 1e3
        return problem.flops / (peak * 1e6) + problem.bytes / bytes_per_us

    def bound_us(self, problem: Problem, backend: Backend) -> float | None:
        """Microseconds that no kernel can stay below; None where a maximum was not measured."""
        types = backend.peak_types(problem.a_type)
        if self.gb_per_s is None or any(name not in self.tflops for name in types):
            return None
        peak = max(self.tflops[name] for name in types)
        return max(problem.flops / (peak * 1e6), problem.bytes / (self.gb_per_s * 1e3))


def limits(
    pool: Pool, backend: Backend, types: Iterable[str], store: Store, budget_seconds: float
) -> Limits:
    """The limits of this machine: from the store, or measured now into it.

    What merely prunes is left out where the operands' own peaks took a tenth of the budget.

    Args:
        types: of the operands of all problems.
        budget_seconds: 0 measures nothing.
    """
    start = time.monotonic()
    own = sorted(set(types))
    measured = _peaks(pool, own, store, start + budget_seconds)
    if time.monotonic() < start + _SHARE_OF_BUDGET * budget_seconds:
        others = sorted({t for name in own for t in backend.peak_types(name)} - set(own))
        measured |= _peaks(pool, others, store, start + budget_seconds)
        _bandwidth(pool, store, start + budget_seconds)
    known = {
        name: peak
        for name in {t for own_type in own for t in (own_type, *backend.peak_types(own_type))}
        if (peak := store.get_peak(name)) is not None
    }
    bandwidth = store.get_bandwidth()
    gb_per_s = None if bandwidth is None else bandwidth.gb_per_s
    return Limits(dict(sorted((known | measured).items())), gb_per_s)


def _peaks(pool: Pool, types: Sequence[str], store: Store, deadline: float) -> dict[str, float]:
    peaks: dict[str, float] = {}
    requests: list[dict[str, Any]] = [{"peak": t} for t in types if store.get_peak(t) is None]
    for request, answer in pool.run(requests, timeout=_SECONDS, deadline=deadline):
        if answer.failure is None:
            peaks[request["peak"]] = round(answer.content["peak"], 6)
            store.put_peak(request["peak"], peaks[request["peak"]])
    return peaks


def _bandwidth(pool: Pool, store: Store, deadline: float) -> None:
    if store.get_bandwidth() is not None:
        return
    for _, answer in pool.run([{"bandwidth": True}], timeout=_SECONDS, deadline=deadline):
        if answer.failure is None:
            store.put_bandwidth(answer.content["bandwidth"])
