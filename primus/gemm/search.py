"""Tune the GEMMs of a training step: order, measure what the store lacks, choose."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import Self

from primus.config.frozen import StageSettings
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import DEFAULT, Backend, BackendSpec
from primus.gemm.choose import Choice, choose, untimed
from primus.gemm.limits import Limits, known_limits, measure_bounds, measure_peaks
from primus.gemm.nodes import Nodes, hosts_of_job
from primus.gemm.pool import Answer, Measuring, Pool
from primus.gemm.problem import Problem
from primus.gemm.progress import Progress
from primus.gemm.shapes import Shape
from primus.gemm.stack import Stack
from primus.gemm.store import Origin, Store, Times
from primus.gemm.tokens import expand
from primus.launch import platform_environment

Stopped = Literal["complete", "budget", "disabled"]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What the search depends on; `gemm_tuning` of the configuration in plain units.

    Attributes:
        workers: measuring processes at a time on each node; None: one per device.
        environment: variables of every measuring process.
        hosts: nodes of the job to measure on; none: this machine.
    """

    coverage: float = 0.95
    min_gain: float = 0.05
    allow_lossy: bool = False
    budget_seconds: float = 1800.0
    problem_timeout_seconds: float = 120.0
    expert_token_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    workers: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: StageSettings, min_gain: float) -> Self:
        """Those of a tune stage; `min_gain` is the backend's, where the settings name none."""
        keys = settings.gemm_tuning
        return cls(
            coverage=keys.coverage,
            min_gain=keys.min_gain if keys.min_gain is not None else min_gain,
            allow_lossy=keys.allow_lossy,
            budget_seconds=60 * keys.budget_minutes,
            problem_timeout_seconds=keys.problem_timeout_seconds,
            expert_token_factors=tuple(keys.expert_token_factors),
            workers=keys.workers,
            environment=platform_environment(settings.platform) | settings.env.as_dict(),
            hosts=hosts_of_job(keys.nodes),
        )


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
        tuned: in the order in which the shapes were given; one that varies with the tokens of
            experts is replaced by several.
        peak_tflops: by GEMM type.
        gb_per_s: at which operands move at most; None where it was not measured.
        coverage: share of the estimated GEMM time whose problems have been timed.
        measured_on: problems timed now, by the node that timed them.
        reused: problems timed before.
        failed: problems without a time because measuring them failed.
    """

    stack: Stack
    tuned: list[Tuned]
    peak_tflops: dict[str, float]
    gb_per_s: float | None = None
    coverage: float
    measured_on: Mapping[str, int]
    reused: int
    failed: int
    stopped: Stopped

    @property
    def measured(self) -> int:
        """Problems timed now."""
        return sum(self.measured_on.values())


def tune(
    shapes: Sequence[Shape],
    spec: BackendSpec,
    settings: SearchSettings,
    store_root: str,
    *,
    enabled: bool = True,
    origin: Origin | None = None,
) -> SearchResult:
    """Choose a kernel for every shape.

    Problems are taken in the order of calls x estimated time until `coverage` of the whole is
    reached. A problem in the store is not measured again, nor is one that failed before.

    Args:
        enabled: with False nothing is measured and every problem keeps its default.
        origin: kept with every measurement.

    Raises:
        UnavailableError: this machine cannot measure with the backend.
        PrimusError: the measuring processes do not start.
    """
    backend = load_backend(spec)
    store = Store(store_root, backend.stack())
    all_wanted = expand(shapes, settings.expert_token_factors)
    types = {w.shape.problem.a_type for w in all_wanted}
    start = time.monotonic()
    end = start + settings.budget_seconds
    measured: Mapping[str, int] = {}
    with _pool(backend, settings) as pool:
        if enabled:
            measure_peaks(pool, types, store, end)
        most = known_limits(backend, types, store)
        costs = {
            p.shape.problem: p.weight * most.estimate_us(p.shape.problem, backend)
            for p in all_wanted
        }
        wanted = _covering(costs, settings.coverage) if enabled else []
        lacking = [p for p in wanted if not _is_settled(store.get(p), settings)]
        if lacking:
            measure_bounds(pool, backend, types, store, start, settings.budget_seconds)
            most = known_limits(backend, types, store)
        job = _Job(pool, backend, store, settings, most, origin)
        measured = job.measure(lacking, end)
    why = {p: _why_untimed(p, wanted, enabled) for p in costs}
    found = {problem: store.get(problem) for problem in costs}
    tuned = [_tuned(backend, w.shape, found[w.shape.problem], settings, why) for w in all_wanted]
    timed = sum(costs[p] for p, times in found.items() if times is not None and times.candidates)
    unfinished = [p for p in wanted if not _is_settled(found[p], settings)]
    return SearchResult(
        stack=backend.stack(),
        tuned=tuned,
        peak_tflops=dict(most.tflops),
        gb_per_s=most.gb_per_s,
        coverage=round(timed / sum(costs.values()), 4),
        measured_on=measured,
        reused=len(wanted) - len(lacking),
        failed=sum(times is not None and times.failure is not None for times in found.values()),
        stopped="disabled" if not enabled else "budget" if unfinished else "complete",
    )


def _pool(backend: Backend, settings: SearchSettings) -> Pool | Nodes:
    spec, environment = backend.spec, settings.environment
    if settings.hosts:
        hosts, stack = settings.hosts, backend.stack()
        return Nodes(spec, hosts, stack, workers=settings.workers, environment=environment)
    workers = settings.workers or backend.devices()
    return Pool(spec, workers, environment, backend.worker_environment)


def _tuned(
    backend: Backend,
    shape: Shape,
    times: Times | None,
    settings: SearchSettings,
    why: Mapping[Problem, str],
) -> Tuned:
    choice = _decide(backend, shape.problem, times, settings, why[shape.problem])
    return Tuned(shape, choice, times.details if times is not None else {})


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


@dataclass(frozen=True)
class _Job:
    """What measuring takes."""

    pool: Measuring
    backend: Backend
    store: Store
    settings: SearchSettings
    limits: Limits
    origin: Origin | None

    def measure(self, problems: Sequence[Problem], deadline: float) -> Mapping[str, int]:
        """Time the problems into the store until the deadline; how many got there, by node."""
        measured = Counter[str]()
        if not problems:
            return measured
        with Progress(len(problems)) as progress:
            timeout = self.settings.problem_timeout_seconds
            requests = self._requests(problems)
            for request, answer in self.pool.run(requests, timeout=timeout, deadline=deadline):
                times = self._times(request["problem"], answer)
                self.store.put(times)
                measured[answer.host or socket.gethostname()] += 1
                how = times.failure or times.pruned or "timed"
                progress.step(f"{Problem.from_json(times.problem)}: {how}")
        return measured

    def _requests(self, problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
        for problem in problems:
            # Another process may have timed it while this one was busy.
            if not _is_settled(self.store.get(problem), self.settings):
                bound_us = self.limits.bound_us(problem, self.backend)
                yield {"problem": problem.to_json(), "bound_us": bound_us}

    def _times(self, problem: dict[str, Any], answer: Answer) -> Times:
        origin = self.origin.now(answer.host) if self.origin is not None else None
        if answer.failure is None:
            return Times(problem=problem, origin=origin, **answer.content)
        limit = self.settings.problem_timeout_seconds if answer.timed_out else None
        return Times(problem=problem, failure=answer.failure, limit_seconds=limit, origin=origin)


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
    alone = times.pruned or backend.why_no_candidates(problem)
    if not times.candidates:
        return untimed(DEFAULT, alone)
    return choose(
        dict(times.candidates),
        min_gain=settings.min_gain,
        allow_lossy=settings.allow_lossy,
        alone=alone,
    )
