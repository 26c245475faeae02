"""All measurements of one problem: a screening, then two interleaved runs of the fastest.

What is measured does not depend on any setting, so that the times in the store serve every
setting; `primus.gemm.choose` decides from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from primus.gemm.backends.base import Backend
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


class CandidateTimes(BaseModel):
    """The samples of one candidate, in microseconds per call.

    Attributes:
        screen: of the first look.
        runs: of the interleaved runs; sample i of every finalist was taken in the same round.
        numerics, error_ratio: null for candidates that were not compared.
        error: why it could not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    screen: list[float] = []
    runs: list[list[float]] = []
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
    for name in faster:
        numerics = backend.numerics(problem, name)
        times[name] = times[name].model_copy(
            update={"numerics": numerics.kind, "error_ratio": numerics.error_ratio}
        )
    finalists = _finalists(faster, times)
    for _ in range(RUNS):
        if not finalists:
            break
        run = backend.interleave(problem, [default, *finalists], ROUNDS)
        for name, samples in run.items():
            times[name] = times[name].model_copy(update={"runs": [*times[name].runs, samples]})
        # One that lost its first run wins under no setting.
        finalists = [name for name in finalists if min(run[name]) < min(run[default])]
    return times


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
                refused[name] = str(error).partition("\n")[0] or type(error).__name__
                continue
            best = min(best, samples[name][-1])
    return {name: refused.get(name, samples[name]) for name in names}


def _screened(samples: list[float] | str) -> CandidateTimes:
    return (
        CandidateTimes(error=samples)
        if isinstance(samples, str)
        else CandidateTimes(screen=samples)
    )


def _finalists(names: list[str], times: dict[str, CandidateTimes]) -> list[str]:
    """The fastest of the screening, lossy ones apart: either kind may be asked for."""
    ordered = sorted(names, key=lambda name: min(times[name].screen))
    faithful = [name for name in ordered if times[name].numerics != "lossy"]
    lossy = [name for name in ordered if times[name].numerics == "lossy"]
    return [*faithful[:FINALISTS], *lossy[:LOSSY_FINALISTS]]


def interleave_one_by_one(
    backend: Backend, problem: Problem, names: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Rounds of one sample of each; who comes first changes from round to round."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            samples[name].append(round(backend.measure(problem, name), 3))
    return samples
