from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.dataset.order import batch_indices, sample_order

sizes = st.integers(1, 50)
seeds = st.integers(0, 2**31)


def walk(samples: int, batch: int, size: int, seed: int, start: int = 0) -> list[int]:
    """The first samples of a walk with one batch size."""
    taken: list[int] = []
    while len(taken) < samples:
        taken += batch_indices(start + len(taken), batch, size, seed).tolist()
    return taken[:samples]


@given(sizes, seeds, st.integers(1, 4), st.integers(1, 17))
def test_each_sample_comes_once_in_each_pass(size: int, seed: int, passes: int, batch: int) -> None:
    walked = np.array(walk(passes * size, batch, size, seed)).reshape(passes, size)
    for one_pass in walked:
        assert sorted(one_pass) == list(range(size))


@given(sizes, seeds, st.integers(1, 17), st.integers(1, 17), st.integers(0, 120))
def test_the_walk_depends_on_neither_batch_size_nor_where_it_was_taken_up(
    size: int, seed: int, batch: int, other: int, start: int
) -> None:
    whole = walk(start + 40, batch, size, seed)
    assert walk(40, other, size, seed, start) == whole[start:]


def test_passes_and_seeds_differ() -> None:
    orders = [sample_order(seed, number, 1000) for seed in (1, 2) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_one_that_earlier_versions_gave() -> None:
    """A run that is resumed after an update must go on in the same order."""
    assert sample_order(1234, 0, 10).tolist() == GOLDEN[0]
    assert sample_order(1234, 1, 10).tolist() == GOLDEN[1]


GOLDEN = [[8, 9, 5, 0, 2, 6, 4, 7, 1, 3], [1, 4, 0, 5, 2, 8, 9, 7, 6, 3]]


def test_an_order_can_be_neither_changed_nor_empty() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sample_order(1, 0, 4)[0] = 3
    with pytest.raises(ValueError, match="no samples"):
        sample_order(1, 0, 0)
