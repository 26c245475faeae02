"""One number for the samples that were consumed: what it depends on, and what it notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_run import RunSpec, write_run

from primus import consumed
from primus.dataset.order import batch_indices, sample_order
from primus.reports import watched
from primus.reports.inputs import Inputs, read_inputs

samples = st.lists(st.integers(0, 2**40), min_size=1, max_size=60)
starts = st.integers(0, 2**50)


def whole(start: int, ids: list[int]) -> int:
    return consumed.checksum(np.arange(start, start + len(ids)), ids)


@given(starts, samples, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_neither_ranks_nor_iterations_nor_resumes_change_it(
    start: int, ids: list[int], ranks: int, micro: int, iterations: int
) -> None:
    """Dealt as the trainer deals micro-batches, and summed as float64 in halves."""
    ids = (ids * ranks * micro * iterations)[: ranks * micro * iterations]
    total = 0
    for iteration in range(iterations):
        halves = np.zeros(2)
        for rank in range(ranks):
            first = iteration * ranks * micro + rank * micro
            part = whole(start + first, ids[first : first + micro])
            halves += consumed.halves(part)
        total = consumed.added(total, consumed.joined(*halves))
    assert total == whole(start, ids)


def test_halves_are_exact_for_many_ranks() -> None:
    number = 2**64 - 1
    halves = np.array(consumed.halves(number)) * 2**21
    assert consumed.joined(*halves) == consumed.added(*[number] * 2**21)


@given(starts, samples, st.data())
def test_a_skipped_repeated_or_moved_sample_changes_it(
    start: int, ids: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(ids) - 1))
    other = data.draw(st.integers(0, len(ids) - 1))
    skipped = ids[:at] + ids[at + 1 :]
    repeated = ids[: at + 1] + ids[at:]
    swapped = list(ids)
    swapped[at], swapped[other] = ids[other], ids[at]
    right = whole(start, ids)
    assert whole(start, skipped) != right
    assert whole(start, repeated) != right
    assert (whole(start, swapped) == right) == (swapped == ids)
    # Of the same length: what follows moves up, and the next sample takes the last place.
    following = data.draw(st.integers(0, 2**40))
    moved = [*skipped, following]
    assert (whole(start, moved) == right) == (moved == ids)


def test_the_mix_is_the_published_one() -> None:
    """First outputs of splitmix64 with seed 0, as its authors' code gives them."""
    step = int(consumed._STEP)
    states = np.array([step * n % 2**64 for n in (1, 2, 3)], np.uint64)
    with np.errstate(over="ignore"):
        found = [int(value) for value in consumed._mix(states)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.integers(1, 40), st.integers(0, 99), st.integers(1, 9), st.integers(0, 60))
def test_what_is_expected_is_what_a_run_reads(size: int, seed: int, batch: int, start: int) -> None:
    marks = [start + batch * n for n in range(8)]
    read = [
        consumed.checksum(np.arange(mark, mark + batch), batch_indices(mark, batch, size, seed))
        for mark in marks[:-1]
    ]
    passes = lambda number: sample_order(seed, number, size)  # noqa: E731
    assert list(consumed.expected(passes, size, marks)) == read


SIZE, SEED, BATCH = 901, 1234, 16


def logged(tmp_path: Path, wrong: int | None = None) -> Inputs:
    """A run whose rows hold the checksum; in iteration `wrong` it read another sample."""

    def add(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        sums, total = {}, 0
        for iteration in range(1, 301):
            ids = batch_indices((iteration - 1) * BATCH, BATCH, SIZE, SEED).copy()
            if iteration == wrong:
                ids[3] = (ids[3] + 1) % SIZE
            first = (iteration - 1) * BATCH
            total = consumed.added(total, consumed.checksum(np.arange(first, first + BATCH), ids))
            sums[iteration] = total
        for row in rows:
            if row["type"] == "train":
                row["sample_checksum"] = consumed.as_text(sums[row["iteration"]])
        return rows

    spec = RunSpec(edit_rows=add, train_samples=SIZE)
    return read_inputs(write_run(tmp_path, spec))


def test_the_report_computes_it_again(tmp_path: Path) -> None:
    inputs = logged(tmp_path)
    check = watched.samples_consumed(inputs, sample_order)
    assert (check.outcome, check.detail.split(" as ")[0]) == ("ok", "all 4,800")
    assert watched.samples_consumed(inputs, None).outcome == "absent"


def test_the_report_fails_where_another_sample_was_read(tmp_path: Path) -> None:
    check = watched.samples_consumed(logged(tmp_path, wrong=153), sample_order)
    assert check.outcome == "failed"
    assert "up to iteration 155" in check.detail


def test_of_a_long_run_the_report_computes_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = logged(tmp_path)
    monkeypatch.setattr(watched, "MOST_SAMPLES", 1000)
    right = watched.samples_consumed(inputs, sample_order)
    assert (right.outcome, right.detail[:13]) == ("ok", "the last 960 ")
    monkeypatch.setattr(watched, "MOST_SAMPLES", 900)
    assert watched.samples_consumed(inputs, sample_order).outcome == "absent"


def test_a_run_without_checksums_is_not_judged(tmp_path: Path) -> None:
    inputs = read_inputs(write_run(tmp_path))
    assert watched.samples_consumed(inputs, sample_order).outcome == "absent"
