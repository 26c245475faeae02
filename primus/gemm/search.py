"""Tune the GEMMs of a training step: order, measure what the store lacks, choose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from primus.gemm.backends import load_backend
from primus.gemm.backends.base import DEFAULT, Backend, BackendSpec
from primus.gemm.choose import Choice, choose, untimed
from primus.gemm.pool import Answer, Pool
from primus.gemm.problem import Problem
from primus.gemm.progress import Progress
from primus.gemm.shapes import Shape
from primus.gemm.stack import Stack
from primus.gemm.store import Store, Times

Stopped = Literal["complete", "budget", "disabled"]

# Assumed where the peak could not be measured, in 10^12 FLOP/s: it orders the problems, no more.
_FALLBACK_TFLOPS = 0.1
_PEAK_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What the search depends on; `gemm_tuning` of the configuration in plain units."""

    coverage: float = 0.95
    min_gain: float = 0.05
    allow_lossy: bool = False
    budget_seconds: float = 1800.0
    problem_timeout_seconds: float = 120.0
    workers: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """What was chosen for one shape."""

    shape: Shape
    choice: Choice
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The outcome of `tune`.

    Attributes:
        tuned: in the order in which the shapes were given.
        peak_tflops: by GEMM type.
        coverage: share of the estimated GEMM time whose problems have been timed.
        measured, reused: problems timed now, and before.
        failed: problems without a time because measuring them failed.
    """

    stack: Stack
    tuned: list[Tuned]
    peak_tflops: dict[str, float]
    coverage: float
    measured: int
    reused: int
    failed: int
    stopped: Stopped


def tune(
    shapes: Sequence[Shape],
    spec: BackendSpec,
    settings: SearchSettings,
    store_root: str,
    *,
    enabled: bool = True,
) -> SearchResult:
    """Choose a kernel for every shape.

    Problems are taken in the order of calls x estimated time until `coverage` of the whole is
    reached. A problem in the store is not measured again, nor is one that failed before.

    Args:
        enabled: with False nothing is measured and every problem keeps its default.

    Raises:
        UnavailableError: this machine cannot measure with the backend.
        PrimusError: the measuring processes do not start.
    """
    backend = load_backend(spec)
    store = Store(store_root, backend.stack())
    end = time.monotonic() + settings.budget_seconds
    workers = settings.workers or backend.devices()
    with Pool(spec, workers, settings.environment, backend.worker_environment) as pool:
        peaks = _peaks(pool, shapes, store, end if enabled else 0.0)
        costs = {s.problem: s.calls * _estimate(backend, s.problem, peaks) for s in shapes}
        wanted = _covering(costs, settings.coverage) if enabled else []
        lacking = [p for p in wanted if not _is_settled(store.get(p), settings)]
        measured = _measure(pool, lacking, store, settings, end)
    tuned, timed, failed = [], 0.0, 0
    for shape in shapes:
        times = store.get(shape.problem)
        failed += times is not None and times.failure is not None
        timed += costs[shape.problem] if times is not None and times.candidates else 0.0
        reason = _why_untimed(shape.problem, wanted, enabled)
        choice = _decide(backend, shape.problem, times, settings, reason)
        tuned.append(Tuned(shape, choice, times.details if times is not None else {}))
    unfinished = [p for p in wanted if not _is_settled(store.get(p), settings)]
    return SearchResult(
        stack=backend.stack(),
        tuned=tuned,
        peak_tflops=dict(sorted(peaks.items())),
        coverage=round(timed / sum(costs.values()), 4),
        measured=measured,
        reused=len(wanted) - len(lacking),
        failed=failed,
        stopped="disabled" if not enabled else "budget" if unfinished else "complete",
    )


def _peaks(pool: Pool, shapes: Sequence[Shape], store: Store, deadline: float) -> dict[str, float]:
    """The peak of every operand type that occurs: from the store, or measured now."""
    types = sorted({shape.problem.a_type for shape in shapes})
    peaks = {name: peak for name in types if (peak := store.get_peak(name)) is not None}
    requests: list[dict[str, Any]] = [{"peak": name} for name in types if name not in peaks]
    for request, answer in pool.run(requests, timeout=_PEAK_SECONDS, deadline=deadline):
        if answer.failure is None:
            peaks[request["peak"]] = round(answer.content["peak"], 6)
            store.put_peak(request["peak"], peaks[request["peak"]])
    return peaks


def _estimate(backend: Backend, problem: Problem, peaks: Mapping[str, float]) -> float:
    """Rough microseconds of one call, known before anything is measured."""
    peak = peaks.get(problem.a_type, _FALLBACK_TFLOPS)
    return problem.flops / (peak * 1e6) + problem.bytes / backend.bytes_per_us


def _covering(costs: Mapping[Problem, float], coverage: float) -> list[Problem]:
    """The fewest problems that make up `coverage` of the cost, largest first."""
    ordered = sorted(costs, key=lambda problem: (-costs[problem], problem.sort_key()))
    wanted: list[Problem] = []
    missing = coverage * sum(costs.values()) * (1 - 1e-9)
    for problem in ordered:
        if missing <= 0:
            break
        wanted.append(problem)
        missing -= costs[problem]
    return wanted


def _is_settled(times: Times | None, settings: SearchSettings) -> bool:
    return times is not None and times.settles(settings.problem_timeout_seconds)


def _measure(
    pool: Pool,
    problems: Sequence[Problem],
    store: Store,
    settings: SearchSettings,
    deadline: float,
) -> int:
    """Time the problems into the store until the deadline; how many got there."""

    def requests() -> Iterator[dict[str, Any]]:
        for problem in problems:
            # Another process may have timed it while this one was busy.
            if not _is_settled(store.get(problem), settings):
                yield {"problem": problem.to_json()}

    measured = 0
    if not problems:
        return 0
    with Progress(len(problems)) as progress:
        timeout = settings.problem_timeout_seconds
        for request, answer in pool.run(requests(), timeout=timeout, deadline=deadline):
            times = _times(request["problem"], answer, timeout)
            store.put(times)
            measured += 1
            progress.step(f"{Problem.from_json(times.problem)}: {times.failure or 'timed'}")
    return measured


def _times(problem: dict[str, Any], answer: Answer, timeout: float) -> Times:
    if answer.failure is None:
        return Times(problem=problem, **answer.content)
    limit = timeout if answer.timed_out else None
    return Times(problem=problem, failure=answer.failure, limit_seconds=limit)


def _why_untimed(problem: Problem, wanted: Sequence[Problem], enabled: bool) -> str:
    if not enabled:
        return "gemm_tuning.enabled is false"
    return "budget" if problem in wanted else "beyond the coverage"


def _decide(
    backend: Backend,
    problem: Problem,
    times: Times | None,
    settings: SearchSettings,
    reason: str,
) -> Choice:
    if times is None:
        return untimed(DEFAULT, reason)
    if times.failure is not None:
        return untimed(DEFAULT, f"failed: {times.failure}")
    if not times.candidates:
        return untimed(DEFAULT, backend.why_no_candidates(problem))
    return choose(
        dict(times.candidates),
        min_gain=settings.min_gain,
        allow_lossy=settings.allow_lossy,
        alone=backend.why_no_candidates(problem),
    )
