"""Whether a comparison calls a difference what is one, and noise what is noise; on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from primus.reports.comparison.significance import (
    MIN_ROWS,
    mean_of_differences,
    quantile_of_t,
    ratio_of_medians,
)

# All of it: each test is quick.
pytestmark = pytest.mark.slow

Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]
TRIES = 400
# Of 400 tries of something whose chance is 0.05, more than this in one case of 10,000.
MOST = 0.0975


def white(chance: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Independent rows of 3 % noise."""
    return 1 + 0.03 * chance.standard_normal(rows)


def sluggish(chance: np.random.Generator, rows: int, alike: float = 0.6) -> NDArray[np.float64]:
    """Rows that resemble their neighbours: so much of a row is that of the one before."""
    level, found = chance.standard_normal(), []
    for step in math.sqrt(1 - alike**2) * chance.standard_normal(rows):
        level = alike * level + step
        found.append(level)
    return 1 + 0.03 * np.array(found)


def very_sluggish(chance: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """The same, more so."""
    return sluggish(chance, rows, 0.8)


def busy(chance: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """A machine with others on it: one row in twenty-five is a quarter slower."""
    return white(chance, rows) * np.where(chance.random(rows) < 0.04, 0.75, 1.0)


def spells(chance: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """A tenth slower for five rows on average, in one of five."""
    slow, found = chance.random() < 0.2, []
    for _ in range(rows):
        slow = chance.random() > 0.2 if slow else chance.random() < 0.05
        found.append(0.9 if slow else 1.0)
    return white(chance, rows) * np.array(found)


def called(noise: Noise, rows: int, gain: float, confidence: float = 0.95) -> float:
    """Share of the tries in which a difference is said to be one; of a gain, of its sign."""
    chance = np.random.default_rng(rows)
    found = 0
    for _ in range(TRIES):
        ratio = ratio_of_medians(gain * noise(chance, rows), noise(chance, rows), confidence)
        assert ratio is not None
        found += ratio.significant and (gain == 1 or ratio.value > 1)
    return found / TRIES


@pytest.mark.parametrize("rows", [MIN_ROWS, 60])
@pytest.mark.parametrize("noise", [white, sluggish, very_sluggish, busy, spells])
def test_equal_runs_raise_no_more_alarms_than_the_level(noise: Noise, rows: int) -> None:
    assert called(noise, rows, 1.0) <= MOST


@pytest.mark.parametrize(("noise", "rows"), [(white, 120), (busy, 120), (sluggish, 300)])
def test_two_per_cent_are_found_in_enough_rows(noise: Noise, rows: int) -> None:
    assert called(noise, rows, 1.02) > 0.9


def test_the_test_would_see_a_method_that_takes_rows_for_independent() -> None:
    """The same rows, with the interval of independent ones: alarms far beyond the level."""
    chance = np.random.default_rng(1)
    alarms = 0
    for _ in range(TRIES):
        new, old = sluggish(chance, 60), sluggish(chance, 60)
        error = np.sqrt((new.var(ddof=1) + old.var(ddof=1)) / 60)
        alarms += abs(new.mean() - old.mean()) > 1.98 * error
    assert alarms / TRIES > 2 * MOST


def test_paired_differences() -> None:
    chance = np.random.default_rng(2)
    found = [
        [mean_of_differences(list(shift + sluggish(chance, 60) - 1), 0.95) for _ in range(TRIES)]
        for shift in (0.0, 0.04)
    ]
    alarms, hits = (
        sum(one is not None and one.significant for one in some) / TRIES for some in found
    )
    assert alarms <= MOST
    assert hits > 0.9


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(3)
    held = 0
    for _ in range(TRIES):
        ratio = ratio_of_medians(1.1 * busy(chance, 80), busy(chance, 80), 0.95)
        assert ratio is not None
        held += ratio.low <= 1.1 <= ratio.high
    assert held / TRIES >= 1 - MOST


def test_with_more_runs_each_interval_is_wider() -> None:
    chance = np.random.default_rng(4)
    new, old = white(chance, 60), white(chance, 60)
    one, many = (ratio_of_medians(new, old, level) for level in (0.95, 0.99))
    assert one is not None
    assert many is not None
    assert many.low < one.low < one.value < one.high < many.high
    assert many.value == one.value


def test_too_few_rows_say_nothing() -> None:
    rows = [1.0] * MIN_ROWS
    assert ratio_of_medians(rows, rows[1:], 0.95) is None
    assert mean_of_differences(rows[1:], 0.95) is None


def test_rows_without_noise() -> None:
    same = ratio_of_medians([2.0] * 20, [2.0] * 20, 0.95)
    twice = ratio_of_medians([4.0] * 20, [2.0] * 20, 0.95)
    assert same is not None
    assert twice is not None
    assert (same.value, same.low, same.high, same.significant) == (1.0, 1.0, 1.0, False)
    assert (twice.value, twice.significant) == (pytest.approx(2.0), True)


@pytest.mark.parametrize(
    ("share", "degrees", "table"),
    [
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 5, 2.571),
        (0.975, 10, 2.228),
        (0.975, 19, 2.093),
        (0.975, 38, 2.024),
        (0.995, 5, 4.032),
        (0.995, 19, 2.861),
    ],
)
def test_quantiles_are_those_of_the_tables(share: float, degrees: float, table: float) -> None:
    assert quantile_of_t(share, degrees) == pytest.approx(table, rel=0.01)
