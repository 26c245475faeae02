"""From measured times to a kernel: a pure function of the times and two settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from primus.gemm.backends.base import NumericsClass
from primus.gemm.measure import RUNS, CandidateTimes, run_gain


@dataclass(frozen=True)
class Choice:
    """The kernel for a problem; times in microseconds, medians of all samples that count."""

    candidate: str
    default_us: float | None
    tuned_us: float | None
    gain: float
    numerics: NumericsClass
    reason: str
    others: dict[str, float] = field(default_factory=dict)


# What tests hold `measure_problem` and `choose` to, under a noise like that of a busy CPU (4 %, a
# tenth of the samples 1.5 times too long) and a min_gain of 0.05: the share of the problems whose
# kernels are all equal that get another than the default, and by gain the share of the problems
# with a faster kernel that keep the default.
FALSE_WINNERS = 0.01
MISSED_WINNERS = {0.10: 0.3, 0.20: 0.02}

# A library may have hundreds of kernels for a problem; all their times stay in the store.
MAX_OTHERS = 10


def untimed(default: str, reason: str) -> Choice:
    """The default, for a problem of which no time is known."""
    return Choice(default, None, None, 0.0, "exact", reason)


def choose(
    times: Mapping[str, CandidateTimes], *, min_gain: float, allow_lossy: bool, alone: str
) -> Choice:
    """The fastest candidate that saves `min_gain` of the default's time, whichever way one looks.

    In both runs the minimum, the median, and the median over the rounds of the ratio within a
    round must each be smaller by `min_gain`; otherwise the default stays. Without `allow_lossy`
    lossy candidates do not count.

    Args:
        times: by candidate, the default first.
        alone: the reason to give where the default has no rival.
    """
    default = next(iter(times))
    typical = {name: _typical(t) for name, t in times.items() if t.screen}
    base = typical[default]
    if len(times) == 1:
        return Choice(default, base, base, 0.0, "exact", alone)
    gains = {
        name: _gains(times[default], t)
        for name, t in times.items()
        if name != default and t.runs and (allow_lossy or t.numerics != "lossy")
    }
    winners = [n for n, g in gains.items() if len(g) == RUNS and min(g) >= min_gain]
    if not winners:
        reason = _why_default(gains, times, min_gain, allow_lossy)
        others = _fastest(typical, default)
        return Choice(default, base, base, 0.0, "exact", reason, others)
    winner = min(winners, key=lambda name: (typical[name], name))
    others = _fastest(typical, default, winner)
    gain = 1 - typical[winner] / base
    reason = f"faster by at least {min(gains[winner]):.1%} in both runs"
    numerics = times[winner].numerics or "lossy"
    return Choice(winner, base, typical[winner], round(gain, 4), numerics, reason, others)


def _fastest(typical: Mapping[str, float], *but: str) -> dict[str, float]:
    ordered = sorted(typical, key=lambda name: typical[name])
    return {name: typical[name] for name in [n for n in ordered if n not in but][:MAX_OTHERS]}


def _typical(times: CandidateTimes) -> float:
    samples = [us for run in times.runs for us in run] or times.screen
    return round(statistics.median(samples), 3)


def _gains(default: CandidateTimes, other: CandidateTimes) -> list[float]:
    return [run_gain(old, new) for old, new in zip(default.runs, other.runs, strict=False)]


def _why_default(
    gains: Mapping[str, list[float]],
    times: Mapping[str, CandidateTimes],
    min_gain: float,
    allow_lossy: bool,
) -> str:
    confirmed = {name: min(g) for name, g in gains.items() if len(g) == RUNS}
    if confirmed:
        best = max(confirmed, key=lambda name: confirmed[name])
        if max(gains[best]) >= min_gain:
            return f"{best} was not confirmed: {max(gains[best]):.1%}, then {min(gains[best]):.1%}"
        return f"the best other, {best}, gains {confirmed[best]:.1%}, not {min_gain:.1%}"
    lossy = any(t.numerics == "lossy" and len(t.runs) == RUNS for t in times.values())
    if lossy and not allow_lossy:
        return "only lossy candidates were faster"
    return "no other candidate was faster"
