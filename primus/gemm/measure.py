"""All measurements of one problem: a screening, then two interleaved runs of the fastest.

What is measured does not depend on any setting, so that the times in the store serve every
setting; `primus.gemm.choose` decides from them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from primus.gemm.backends.base import Backend, ToolFailure
from primus.gemm.problem import Problem

# Raise it when times taken in the new way must not be mixed with the old ones.
MEASUREMENT_VERSION = 1
SCREEN_ROUNDS = 3
RUNS = 2
ROUNDS = 9
FINALISTS = 3
LOSSY_FINALISTS = 1
# A candidate whose best sample is slower than the best of all by this factor is given up.
SLOW = 1 / 0.7

Microseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CandidateTimes(BaseModel):
    """The samples of one candidate, in microseconds per call.

    Attributes:
        screen: of the first look.
        runs: of the interleaved runs; sample i of every finalist was taken in the same round.
        numerics, error_ratio: null for candidates that were not compared: slower ones, and those
            behind enough faster ones.
        error: why it could not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    screen: list[Microseconds] = []
    runs: list[list[Microseconds]] = []
    numerics: Literal["exact", "rounding", "lossy"] | None = None
    error_ratio: float | None = None
    error: str | None = None


def measure_problem(backend: Backend, problem: Problem) -> dict[str, CandidateTimes]:
    """Time the candidates of a problem; the default stands first.

    A candidate that raises RuntimeError is recorded with its message.

    Raises:
        RuntimeError: the default itself cannot run.
    """
    names = backend.candidates(problem)
    if not names:
        return {}
    default = names[0]
    screened = backend.screen(problem, SCREEN_ROUNDS)
    first = screened[default]
    if isinstance(first, str):
        raise RuntimeError(f"{default}: {first}")
    times = {name: _screened(samples) for name, samples in screened.items()}
    faster = [n for n in names[1:] if times[n].screen and min(times[n].screen) <= min(first)]
    finalists = _compare(backend, problem, faster, times)
    for _ in range(RUNS):
        if not finalists:
            break
        run = backend.interleave(problem, [default, *finalists], ROUNDS)
        for name, samples in run.items():
            times[name] = times[name].model_copy(update={"runs": [*times[name].runs, samples]})
        # One that lost its first run in any respect wins under no setting.
        finalists = [name for name in finalists if run_gain(run[default], run[name]) >= 0]
    return times


def run_gain(default: Sequence[float], other: Sequence[float]) -> float:
    """The share of the default's time that another candidate saves in a run of both.

    It is the smallest of the gains in the minimum, in the median, and in the median over the
    rounds of the ratio within a round.
    """
    return 1 - max(
        min(other) / min(default),
        statistics.median(other) / statistics.median(default),
        # Samples of one round are neighbours in time: a slow spell of the machine cancels.
        statistics.median(n / o for n, o in zip(other, default, strict=True)),
    )


def near_bound(
    backend: Backend, problem: Problem, bound_us: float
) -> tuple[dict[str, CandidateTimes], str | None]:
    """The default's samples and why no other was timed, where none could gain; else nothing.

    That is so where even a kernel as fast as the bound would gain less than `backend.min_gain`.
    A default far below the bound shows that the bound is none, and does not count.

    Args:
        bound_us: what no kernel can stay below in microseconds (`primus.gemm.limits`).
    """
    names = backend.candidates(problem)
    limit = bound_us / (1 - backend.min_gain)
    if len(names) < 2:
        return {}, None
    try:
        samples = backend.interleave(problem, names[:1], 1)[names[0]]
        if samples[0] > limit * SLOW:
            return {}, None
        samples = samples + backend.interleave(problem, names[:1], SCREEN_ROUNDS - 1)[names[0]]
    except ToolFailure:
        raise
    except RuntimeError:
        return {}, None  # the measurement proper says why
    typical = statistics.median(samples)
    if not bound_us * (1 - backend.min_gain) <= typical <= limit:
        return {}, None
    why = f"the default is at {bound_us / typical:.1%} of what peak and bandwidth allow"
    return {names[0]: CandidateTimes(screen=samples)}, why


def screen_one_by_one(
    backend: Backend, problem: Problem, rounds: int
) -> dict[str, list[float] | str]:
    """`rounds` rounds of one sample of each candidate, without those that turn out slow."""
    names = backend.candidates(problem)
    samples: dict[str, list[float]] = {name: [] for name in names}
    refused: dict[str, str] = {}
    best = float("inf")
    for _ in range(rounds):
        for name in names:
            slow = name != names[0] and samples[name] and min(samples[name]) > best * SLOW
            if name in refused or slow:
                continue
            try:
                samples[name].append(round(backend.measure(problem, name), 3))
            except RuntimeError as error:
                refused[name] = _first_line(error)
                continue
            best = min(best, samples[name][-1])
    return {name: refused.get(name, samples[name]) for name in names}


def _screened(samples: list[float] | str) -> CandidateTimes:
    return (
        CandidateTimes(error=samples)
        if isinstance(samples, str)
        else CandidateTimes(screen=samples)
    )


def _compare(
    backend: Backend, problem: Problem, names: list[str], times: dict[str, CandidateTimes]
) -> list[str]:
    """The fastest of the screening, lossy ones apart: either kind may be asked for.

    Only as many are compared with the default as it takes; what that found goes into `times`.
    """
    faithful: list[str] = []
    lossy: list[str] = []
    for name in sorted(names, key=lambda name: min(times[name].screen)):
        if len(faithful) == FINALISTS:
            break
        try:
            found = backend.numerics(problem, name)
        except ToolFailure:
            raise
        except RuntimeError as error:
            times[name] = times[name].model_copy(update={"error": _first_line(error)})
            continue
        known = {"numerics": found.kind, "error_ratio": found.error_ratio}
        times[name] = times[name].model_copy(update=known)
        (lossy if found.kind == "lossy" else faithful).append(name)
    return [*faithful, *lossy[:LOSSY_FINALISTS]]


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def turns(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The names once per round; who comes first changes from round to round."""
    for number in range(rounds):
        first = number % len(names)
        yield [*names[first:], *names[:first]]


def interleave_one_by_one(
    backend: Backend, problem: Problem, names: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Rounds of one sample of each, in turns."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    for order in turns(names, rounds):
        for name in order:
            samples[name].append(round(backend.measure(problem, name), 3))
    return samples
