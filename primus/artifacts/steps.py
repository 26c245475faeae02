"""Whole training steps that contestants ran in turns: the samples, and what follows from them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

# The process-level candidate: ranks as they are without tuning, or with the C library's own malloc.
DEFAULT_PROCESS = "default"
PLAIN_MALLOC = "plain_malloc"

# Names of contestants.
UNTUNED = "default"
TUNED = "tuned"
TUNED_PLAIN = f"tuned, {PLAIN_MALLOC}"

_CONFIDENCE = 0.95


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contestant(_Part):
    """One way to run the same training steps.

    Attributes:
        kernels: whether the tuned kernels served its products.
        environment: of its process, on top of the default one.
        served: products of a step that a tuned kernel computed.
        samples: microseconds per step, a list per run; sample i of all contestants was taken in
            the same round.
    """

    kernels: Literal["default", "tuned"]
    environment: dict[str, str]
    served: int
    samples: list[list[float]]

    @property
    def all(self) -> list[float]:
        """The samples of all runs."""
        return [us for run in self.samples for us in run]

    @property
    def median(self) -> float:
        """Microseconds."""
        return statistics.median(self.all)

    @property
    def minimum(self) -> float:
        """Microseconds."""
        return min(self.all)


class Steps(_Part):
    """Whole training steps timed in turns, one micro-batch each.

    Attributes:
        clock: "processor" time of one thread, or "wall" time.
        reason: why there are no samples; empty where there are.
    """

    clock: Literal["processor", "wall"]
    threads: int
    contestants: dict[str, Contestant] = {}
    reason: str = ""


class ProcessChoice(_Part):
    """The process-level candidate that training uses.

    Attributes:
        environment: of every rank, under the user's own `env`.
    """

    candidate: str
    environment: dict[str, str]
    reason: str


@dataclass(frozen=True)
class Ratio:
    """Time of one contestant over that of another, paired within the rounds.

    Attributes:
        median: of the ratios of all rounds.
        low, high: 95 % confidence interval of the median, from the order of the ratios alone;
            with fewer than six rounds there is none, and these are the extremes.
        rounds: how many ratios.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def significant(self) -> bool:
        """The interval exists and does not hold 1."""
        return _outermost(self.rounds) > 0 and not self.low <= 1 <= self.high

    @classmethod
    def of(cls, new: Contestant, old: Contestant) -> Ratio:
        """`new` over `old`; below 1 `new` is faster."""
        ratios = sorted(n / o for n, o in zip(new.all, old.all, strict=True))
        left_out = max(_outermost(len(ratios)) - 1, 0)
        return cls(
            median=statistics.median(ratios),
            low=ratios[left_out],
            high=ratios[-1 - left_out],
            rounds=len(ratios),
        )


def _outermost(count: int) -> int:
    """Of sorted samples, from which one on at either end the interval begins; 0 for too few."""
    outside, rank = 0.0, 0
    while True:
        # Chance that the median lies beyond the next sample, on both sides together.
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 1 - _CONFIDENCE:
            return rank
        rank += 1
