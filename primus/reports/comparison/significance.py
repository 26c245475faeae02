"""Whether two noisy rows of numbers differ by more than their noise.

Rows of one run resemble their neighbours: a machine is slow for a while, a loss goes up and down.
Taken for independent they would make everything significant. So each run is cut into stretches of
neighbouring rows, and how the stretches scatter is the noise: batch means (Conway, Some Tactical
Problems in Digital Simulation, Management Science 10, 1963), of medians where outliers are to count
as little as in the figure itself. A stretch is at least as long as rows resemble each other. What
stretches have in common all the same makes them scatter too little; that is made good by what
follows for rows of the correlation found (an autoregressive process of first order). The interval
is Student's, with Welch's degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primus.artifacts.comparison import Estimate

Array = NDArray[np.float64]

# With fewer rows nothing is said.
MIN_ROWS = 18
_STRETCHES = (20, 16, 12, 10, 8, 6)
_ROWS_PER_STRETCH = 3
# Rows that resemble each other more than this count as if they did so this much.
_MOST_ALIKE = 0.9
_LEAST_DEGREES = 2.0
# The median absolute deviation of a normal distribution, times this, is its standard deviation.
_NORMAL = 1.4826


@dataclass(frozen=True)
class _Middle:
    """The middle of a run's rows, its variance, and the degrees of freedom of that."""

    value: float
    variance: float
    degrees: float


def ratio_of_medians(
    new: Sequence[float], old: Sequence[float], confidence: float
) -> Estimate | None:
    """`new` over `old`, both positive; None where one has fewer than `MIN_ROWS` rows."""
    if min(len(new), len(old)) < MIN_ROWS:
        return None
    logs = [np.log(np.asarray(rows, dtype=np.float64)) for rows in (new, old)]
    middles = [_middle(rows, np.median) for rows in logs]
    between, half = middles[0].value - middles[1].value, _half_width(middles, confidence)
    value = math.exp(float(np.median(logs[0]) - np.median(logs[1])))
    low, high = math.exp(between - half), math.exp(between + half)
    return Estimate(
        value=value,
        # The medians of stretches lie around the median of all, not on it.
        low=min(low, value),
        high=max(high, value),
        confidence=confidence,
        significant=not low <= 1 <= high and (value > 1) == (low > 1),
    )


def mean_of_differences(differences: Sequence[float], confidence: float) -> Estimate | None:
    """The mean of paired differences, in their order; None for fewer than `MIN_ROWS`."""
    if len(differences) < MIN_ROWS:
        return None
    rows = np.asarray(differences, dtype=np.float64)
    value = float(rows.mean())
    half = _half_width([_middle(rows, np.mean)], confidence)
    low, high = value - half, value + half
    return Estimate(
        value=value, low=low, high=high, confidence=confidence, significant=not low <= 0 <= high
    )


def _middle(rows: Array, middle: Callable[[Array], Any]) -> _Middle:
    count, alike = len(rows), _alike(rows)
    # So many rows say as much as one that stood alone.
    per_independent = (1 + alike) / (1 - alike)
    longest = max(_ROWS_PER_STRETCH, per_independent)
    stretches = next((n for n in _STRETCHES if count >= n * longest), _STRETCHES[-1])
    parts = np.array([float(middle(part)) for part in np.array_split(rows, stretches)])
    whole, part = _variance(count, alike), _variance(count / stretches, alike)
    # Around their own mean stretches scatter by the variance of one, less that of the whole.
    factor = (stretches - 1) / stretches * whole / (part - whole)
    return _Middle(
        value=float(parts.mean()),
        variance=float(parts.var(ddof=1)) * factor,
        degrees=max(_LEAST_DEGREES, min(stretches - 1, count / per_independent - 1)),
    )


def _alike(rows: Array) -> float:
    """Correlation of a row with the next one, 0 to `_MOST_ALIKE`; outliers count as far ones."""
    count, median = len(rows), float(np.median(rows))
    bound = 3 * _NORMAL * float(np.median(np.abs(rows - median)))
    held = np.clip(rows, median - bound, median + bound) if bound > 0 else rows
    apart = held - held.mean()
    whole = float(apart @ apart)
    if whole == 0:
        return 0.0
    # Of few rows it comes out too small by (1 + 4 r) / n.
    found = (count * float(apart[1:] @ apart[:-1]) / whole + 1) / (count - 4)
    return min(max(found, 0.0), _MOST_ALIKE)


def _variance(count: float, alike: float) -> float:
    """Of the mean of `count` rows of an autoregressive process whose rows have the variance 1."""
    rest = 2 * alike * (1 - alike**count) / (count * (1 - alike) ** 2)
    return float(((1 + alike) / (1 - alike) - rest) / count)


def _half_width(middles: Sequence[_Middle], confidence: float) -> float:
    whole = sum(middle.variance for middle in middles)
    if whole == 0:
        return 0.0
    degrees = whole**2 / sum(middle.variance**2 / middle.degrees for middle in middles)
    return quantile_of_t((1 + confidence) / 2, degrees) * math.sqrt(whole)


def quantile_of_t(share: float, degrees: float) -> float:
    """Of Student's distribution; within 1 % from 2 degrees of freedom on at a share of 0.975.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
