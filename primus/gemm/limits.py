"""What a device can do at most, and so how fast no kernel for a problem can be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from primus.gemm.backends.base import Backend
from primus.gemm.pool import Measuring
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
        gb_per_s: at which operands move in 10^9 bytes per second; None: it was not measured.
    """

    tflops: Mapping[str, float]
    gb_per_s: float | None = None

    def estimate_us(self, problem: Problem, backend: Backend) -> float:
        """Rough microseconds of one call, known before anything is measured.

        The assumed bandwidth serves here: the order of the problems, and with it what the coverage
        leaves out, must not change once the bandwidth has been measured.
        """
        peak = self.tflops.get(problem.a_type, _FALLBACK_TFLOPS)
        return problem.flops / (peak * 1e6) + problem.bytes / backend.bytes_per_us

    def bound_us(self, problem: Problem, backend: Backend) -> float | None:
        """Microseconds that no kernel can stay below; None where a maximum was not measured."""
        types = backend.peak_types(problem.a_type)
        if self.gb_per_s is None or any(name not in self.tflops for name in types):
            return None
        peak = max(self.tflops[name] for name in types)
        return max(problem.flops / (peak * 1e6), problem.bytes / (self.gb_per_s * 1e3))


def known_limits(backend: Backend, types: Iterable[str], store: Store) -> Limits:
    """What the store has of the limits for operands of these types."""
    wanted = {name for own in types for name in (own, *backend.peak_types(own))}
    peaks = {name: peak for name in sorted(wanted) if (peak := store.get_peak(name)) is not None}
    bandwidth = store.get_bandwidth()
    return Limits(peaks, None if bandwidth is None else bandwidth.gb_per_s)


def measure_peaks(pool: Measuring, types: Iterable[str], store: Store, deadline: float) -> None:
    """Measure the peaks that the store lacks into it, until `time.monotonic()` says `deadline`."""
    requests = [{"peak": name} for name in sorted(set(types)) if store.get_peak(name) is None]
    for request, answer in pool.run(requests, timeout=_SECONDS, deadline=deadline):
        if answer.failure is None:
            store.put_peak(request["peak"], round(answer.content["peak"], 6))


def measure_bounds(
    pool: Measuring,
    backend: Backend,
    types: Iterable[str],
    store: Store,
    start: float,
    budget: float,
) -> None:
    """Measure what only bounds: the bandwidth, and peaks of other types than the operands'.

    Nothing, where a tenth of a small budget has passed: it must not be spent on this.

    Args:
        start: `time.monotonic()` when the search began.
        budget: seconds for the search.
    """
    if time.monotonic() >= start + _SHARE_OF_BUDGET * budget:
        return
    others = {name for own in types for name in backend.peak_types(own)}
    measure_peaks(pool, others, store, start + budget)
    if store.get_bandwidth() is not None:
        return
    requests = [{"bandwidth": True}]
    for _, answer in pool.run(requests, timeout=_SECONDS, deadline=start + budget):
        if answer.failure is None:
            store.put_bandwidth(answer.content["bandwidth"])
