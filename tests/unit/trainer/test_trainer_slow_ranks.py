"""Who is named as slow, from own times that are given."""

from __future__ import annotations

from primus.trainer.slow_ranks import SLOW_WINDOWS, Laggards


def laggards(*groups: int) -> Laggards:
    return Laggards(groups, [f"node{rank // 2}" for rank in range(len(groups))])


def said(judge: Laggards, *windows: list[float]) -> list[str]:
    return [change.message for seconds in windows for change in judge.judge(seconds)]


def test_a_rank_that_lags_is_named_once_and_when_it_is_even_again() -> None:
    judge = laggards(0, 1, 2, 3)
    slow, even = [1.0, 1.02, 0.98, 1.5], [1.0, 1.02, 0.98, 1.01]
    assert said(judge, *[slow] * (SLOW_WINDOWS - 1)) == []
    (message,) = said(judge, slow, slow, slow)
    assert message.startswith(
        "rank 3 on node1 is slow: 1.500 s of its own per iteration, where 1.0"
    )
    assert said(judge, even, even) == ["rank 3 on node1 is no longer slow"]
    assert said(judge, *[slow] * (SLOW_WINDOWS - 1), even, slow) == [], "not in a row"


def test_a_small_ratio_or_a_small_time_is_no_lag() -> None:
    assert said(laggards(0, 1, 2), *[[10.0, 10.0, 12.0]] * 9) == []
    assert said(laggards(0, 1, 2), *[[0.010, 0.010, 0.055]] * 9) == []


def test_of_two_the_faster_one_is_usual() -> None:
    (message,) = said(laggards(0, 1), *[[1.0, 1.4]] * 5)
    assert message.startswith("rank 1 on node0")


def test_ranks_that_wait_for_each_other_are_named_together() -> None:
    (message,) = said(laggards(0, 0, 1, 1, 2, 2), *[[1.0, 1.1, 2.0, 1.9, 1.0, 1.0]] * 4)
    assert message.startswith("one of ranks 2, 3 on node1, which wait for each other, is slow: 2.0")


def test_one_group_has_nobody_to_compare_with() -> None:
    assert said(laggards(0, 0), *[[1.0, 9.0]] * 9) == []
