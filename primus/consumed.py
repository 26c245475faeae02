"""Which samples a run has consumed, and in which order, as one number.

Each sample adds a 64-bit mix of its place in the run and of its id, modulo 2^64. So a sum over
ranks or iterations, however they are grouped, gives the number of the whole, and a sample that is
skipped, repeated or read in another place gives another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

# (number of the pass) → ids of all samples in the order of that pass.
Passes = Callable[[int], NDArray[np.int64]]

_MODULUS = 1 << 64
# Samples that are weighed in one go.
_AT_ONCE = 1 << 20
# 2^64 over the golden ratio, and the two factors of splitmix64 (Steele, Lea and Flood, Fast
# Splittable Pseudorandom Number Generators, OOPSLA 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def weigh(positions: ArrayLike, ids: ArrayLike) -> NDArray[np.uint64]:
    """What each sample adds.

    Args:
        positions: place in the whole run, from 0. ids: as the data set numbers its samples.
    """
    with np.errstate(over="ignore"):
        places = (np.asarray(positions, np.uint64) + np.uint64(1)) * _STEP
        return _mix(_mix(places) + (np.asarray(ids, np.uint64) + np.uint64(1)) * _STEP)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def checksum(positions: ArrayLike, ids: ArrayLike) -> int:
    """The number of some samples, below 2^64."""
    with np.errstate(over="ignore"):
        return int(weigh(positions, ids).sum(dtype=np.uint64))


def added(*parts: int) -> int:
    """The number of several groups of samples together."""
    return sum(parts) % _MODULUS


def halves(number: int) -> tuple[float, float]:
    """The number as two that float64 holds exactly, also summed over up to 2^21 ranks."""
    return float(number >> 32), float(number & 0xFFFFFFFF)


def joined(high: float, low: float) -> int:
    """Undo `halves`, after any sums."""
    return added(int(high) << 32, int(low))


def as_text(number: int) -> str:
    """16 hexadecimal digits: not every reader of JSON keeps integers of 64 bits."""
    return f"{number:016x}"


def expected(passes: Passes, size: int, marks: Sequence[int]) -> Iterator[int]:
    """What a run that follows `passes` adds between two marks, for each pair of neighbours.

    Needs memory for what `passes` gives, and little more.

    Args:
        size: samples of one pass. marks: numbers of consumed samples, ascending.
    """
    for start, end in pairwise(marks):
        total, position = 0, start
        while position < end:
            number, first = divmod(position, size)
            piece = passes(number)[first : first + min(end - position, _AT_ONCE)]
            total = added(total, checksum(np.arange(position, position + len(piece)), piece))
            position += len(piece)
        yield total
