"""The numbers of a report, each against a computation of its own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from report_run import GIB, PAUSE, PROBLEMS, STARTING, RunSpec, write_run

from primus.artifacts.run import Attempt, MetricsRow
from primus.errors import ArtifactError
from primus.reports import formats
from primus.reports.budget import phases
from primus.reports.curve import gaps, read_metrics, replay_differences
from primus.reports.headline import compute_headline, spread
from primus.reports.inputs import read_inputs
from primus.reports.watched import loss_spikes


def metrics_row(iteration: int, attempt: int = 1, loss: float = 5.0) -> MetricsRow:
    return MetricsRow(
        attempt=attempt,
        iteration=iteration,
        consumed_samples=iteration,
        consumed_tokens=iteration * 10,
        time=float(iteration),
        loss=loss,
        lr=1e-3,
        grad_norm=1.0,
        skipped_iterations=0,
        seconds_per_iteration=0.5,
        tokens_per_second=20.0,
        tflops_per_second=1.0,
        peak_share=None,
    )


def attempt(number: int, last: int, resumed_from: str | None = None) -> Attempt:
    return Attempt(
        number=number,
        status="completed",
        reason="",
        started=100.0 * number,
        finished=100.0 * number + 50,
        first_iteration=1,
        last_iteration=last,
        resumed_from=resumed_from,
        host="h",
        pid=1,
        world_size=2,
    )


def write_metrics(path: Path, rows: list[MetricsRow]) -> Path:
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_spread_is_numpys_percentiles(count: int) -> None:
    values = list(np.random.default_rng(count).normal(100, 9, count))
    found = spread(values)
    assert [found.p5, found.median, found.p95] == pytest.approx(
        [np.percentile(values, q) for q in (5, 50, 95)]
    )


def test_the_curve_keeps_what_no_later_attempt_ran_again(tmp_path: Path) -> None:
    rows = [metrics_row(i) for i in (10, 20, 30, 40)]
    rows += [metrics_row(i, attempt=2) for i in (30, 40, 50)]
    attempts = [attempt(1, 44), attempt(2, 50, "iter_0000020")]
    curve = read_metrics(write_metrics(tmp_path / "metrics.jsonl", rows), attempts)
    kept = [(row.attempt, row.iteration) for row in curve.train]
    assert kept == [(1, 10), (1, 20), (2, 30), (2, 40), (2, 50)]
    assert [row.iteration for row in curve.superseded] == [30, 40]
    assert [count for _, count in curve.covered()] == [10, 10, 10, 10, 10]
    assert gaps(curve, 10) == []
    assert replay_differences(curve) == (2, [])
    assert curve.lost_iterations == 24


def test_a_killed_attempt_lost_what_its_rows_say(tmp_path: Path) -> None:
    rows = [metrics_row(i) for i in (10, 20, 30)] + [metrics_row(i, attempt=2) for i in (30, 40)]
    # A killed attempt never rewrote its record: it still says iteration 0.
    attempts = [attempt(1, 0), attempt(2, 40, "iter_0000020")]
    curve = read_metrics(write_metrics(tmp_path / "m.jsonl", rows), attempts)
    assert curve.lost_iterations == 10
    assert gaps(curve, 10) == []


@pytest.mark.parametrize("interval", [1, 5])
def test_an_attempt_without_a_readable_record_counts_by_its_rows(
    tmp_path: Path, interval: int
) -> None:
    """Its attempt.json is torn: taken to start at 0, it would have taken all before it away."""
    every = range(interval, 31, interval)
    rows = [metrics_row(i) for i in every if i <= 15]
    rows += [metrics_row(i, attempt=2) for i in every if 10 < i <= 25]
    rows += [metrics_row(i, attempt=3) for i in every if i > 20]
    attempts = [attempt(1, 15), attempt(3, 30, "iter_0000020")]
    curve = read_metrics(write_metrics(tmp_path / "m.jsonl", rows), attempts)
    assert [row.iteration for row in curve.train] == list(every)
    assert {row.attempt for row in curve.train} == {1, 2, 3}
    assert gaps(curve, interval) == []
    assert replay_differences(curve) == (10 // interval, [])


def test_losses_that_differ_when_run_again_are_found(tmp_path: Path) -> None:
    rows = [metrics_row(i) for i in (10, 20, 30)]
    rows += [metrics_row(i, attempt=2, loss=5.0 + 1e-12 * i) for i in (20, 30)]
    attempts = [attempt(1, 30), attempt(2, 30, "iter_0000010")]
    curve = read_metrics(write_metrics(tmp_path / "m.jsonl", rows), attempts)
    assert replay_differences(curve) == (2, [20, 30])


@pytest.mark.parametrize(
    ("iterations", "last", "expected"),
    [
        ([10, 20, 30, 40], 40, None),
        ([10, 20, 30, 35], 35, None),
        ([10, 20, 30], 37, None),  # preempted between two log lines
        ([20, 30, 40], 40, "between iterations 0 and 20"),
        ([10, 20, 40, 50], 50, "between iterations 20 and 40"),
        ([10, 20, 30], 50, "between iterations 30 and 50"),
        ([10, 20, 20, 30], 30, "logs an iteration twice"),
    ],
)
def test_gaps(tmp_path: Path, iterations: list[int], last: int, expected: str | None) -> None:
    path = write_metrics(tmp_path / "m.jsonl", [metrics_row(i) for i in iterations])
    found = gaps(read_metrics(path, [attempt(1, last)]), 10)
    assert found == [] if expected is None else expected in found[0]


def test_iterations_that_no_attempt_ran_are_found(tmp_path: Path) -> None:
    rows = [metrics_row(10), metrics_row(20), metrics_row(40, attempt=2)]
    attempts = [attempt(1, 20), attempt(2, 40, "iter_0000030")]
    curve = read_metrics(write_metrics(tmp_path / "m.jsonl", rows), attempts)
    assert gaps(curve, 10) == ["no attempt ran iterations 21 to 30"]


def test_unreadable_lines_are_named_and_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "metrics.jsonl", [metrics_row(10)])
    path.write_text(path.read_text() + '{"type": "train", "iter\n[]\n')
    assert read_metrics(path, []).bad_lines == ["metrics.jsonl:2", "metrics.jsonl:3"]
    path.write_text("")
    with pytest.raises(ArtifactError, match="holds no training row"):
        read_metrics(path, [])


def test_gemm_totals_are_weighted_by_calls(tmp_path: Path) -> None:
    figures = compute_headline(read_inputs(write_run(tmp_path))).tuning
    assert figures is not None
    timed = [p for p in PROBLEMS if p[3] is not None]
    calls = np.array([p[1] for p in timed])
    default, tuned = (np.array([p[i] for p in timed], dtype=float) for i in (3, 4))
    assert figures.default_us == pytest.approx(calls @ default)
    assert figures.tuned_us == pytest.approx(calls @ tuned)
    assert figures.saving == pytest.approx(1 - (calls @ tuned) / (calls @ default))
    assert (figures.problems, figures.timed_problems, figures.improved_problems) == (8, 7, 4)
    # 16 samples in microbatches of 2 over 2 data-parallel ranks
    assert figures.microbatches == 4


def test_time_budget_adds_up_to_the_wall_time(tmp_path: Path) -> None:
    headline = compute_headline(read_inputs(write_run(tmp_path)))
    budget = headline.time_budget
    assert sum(budget.model_dump().values()) == pytest.approx(headline.wall_seconds)
    assert budget.saving == pytest.approx(0.5 * headline.attempts)
    assert headline.lost_iterations == 80
    iterations = budget.compute + budget.data
    assert headline.effective_share == pytest.approx(iterations / headline.wall_seconds)
    assert budget.data == pytest.approx(2e-4 * 300)
    assert (budget.start, budget.restart) == (pytest.approx(STARTING), pytest.approx(STARTING))
    assert (budget.queue, budget.between) == (0, pytest.approx(PAUSE))


def test_the_queue_counts_where_no_attempt_ran(tmp_path: Path) -> None:
    plain = compute_headline(read_inputs(write_run(tmp_path / "plain")))
    found = compute_headline(read_inputs(write_run(tmp_path, RunSpec(queued=True))))
    # Twice twenty seconds of queue; what was between shrinks by one of them and grows by the two
    # seconds that the first job took to start its ranks.
    assert found.wall_seconds == pytest.approx(plain.wall_seconds + 22)
    assert found.time_budget.queue == pytest.approx(40)
    assert found.time_budget.between == pytest.approx(PAUSE - 20 + 2)
    assert sum(found.time_budget.model_dump().values()) == pytest.approx(found.wall_seconds)
    assert found.effective_share < plain.effective_share


def test_a_second_attempt_in_the_same_job_did_not_wait_again(tmp_path: Path) -> None:
    times = {"submitted": 40.0, "job_started": 90.0}
    attempts = [attempt(n, 20, None).model_copy(update=times) for n in (1, 2)]
    curve = read_metrics(write_metrics(tmp_path / "m.jsonl", [metrics_row(10)]), attempts)
    found = phases(attempts, curve)
    assert [(phase.kind, phase.seconds) for phase in found[1][:2]] == [
        ("queue", 50.0),
        ("between", 10.0),
    ]
    assert (found[2][0].kind, found[2][0].seconds) == ("between", 50.0)


def test_phases_follow_each_other_and_hold_what_was_lost(tmp_path: Path) -> None:
    inputs = read_inputs(write_run(tmp_path, RunSpec(queued=True)))
    found = inputs.phases
    kinds = {number: [phase.kind for phase in one] for number, one in found.items()}
    assert kinds == {
        1: ["queue", "between", "start", "train", "lost", "end"],
        2: ["between", "queue", "between", "start", "train", "end"],
    }
    every = [phase for one in found.values() for phase in one]
    assert all(a.end == b.begin for a, b in pairwise(every))
    assert inputs.curve.lost == {1: 80}
    (lost,) = (phase.seconds for phase in every if phase.kind == "lost")
    assert lost == pytest.approx(80 * 0.2, rel=0.1)
    headline = compute_headline(inputs)
    assert every[-1].end - every[0].begin == pytest.approx(headline.wall_seconds)


def test_memory_and_experts_are_the_last_that_was_told(tmp_path: Path) -> None:
    headline = compute_headline(read_inputs(write_run(tmp_path, RunSpec(experts=True))))
    assert (headline.peak_bytes, headline.device_bytes) == (int(2.2 * GIB), 8 * GIB)
    inputs = read_inputs(write_run(tmp_path / "again", RunSpec(experts=True)))
    tokens = np.array(inputs.curve.experts[-1].tokens)
    assert headline.experts is not None
    assert headline.experts.busiest == pytest.approx((tokens.max(1) / tokens.mean(1)).max())
    assert (headline.experts.layers, headline.experts.experts, headline.experts.idle) == (2, 8, 0)
    older = compute_headline(read_inputs(write_run(tmp_path / "older")))
    assert older.experts is None


def test_an_attempt_killed_without_a_word_ends_at_its_last_row(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    record = paths.train.parent / "attempts" / "001" / "attempt.json"
    content = json.loads(record.read_text()) | {"status": "running", "finished": None}
    record.write_text(json.dumps(content))
    before = compute_headline(read_inputs(write_run(tmp_path / "other")))
    after = compute_headline(read_inputs(paths))
    assert after.wall_seconds == before.wall_seconds
    assert after.time_budget.between == pytest.approx(before.time_budget.between + 2.0, abs=1.0)


def test_a_spike_is_found_and_noise_is_not() -> None:
    losses = list(np.random.default_rng(0).normal(5, 0.05, 200))
    assert list(loss_spikes([metrics_row(i, loss=v) for i, v in enumerate(losses)])) == []
    losses[120] = 7.0
    assert list(loss_spikes([metrics_row(i, loss=v) for i, v in enumerate(losses)])) == [120]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.number(12345), "12,345"),
        (formats.number(0.0012345), "0.001234"),
        (formats.number(1.2e-7), "1.200e-07"),
        (formats.number(None), "–"),
        (formats.number(0.0), "0"),
        (formats.scaled(1_228_800), "1.23 M"),
        (formats.scaled(5.1e7, "FLOP"), "51 MFLOP"),
        (formats.scaled(512), "512"),
        (formats.size(40_000), "39.1 KiB"),
        (formats.size(12), "12 B"),
        (formats.seconds(0.2), "200 ms"),
        (formats.seconds(59.96), "60.0 s"),
        (formats.seconds(303), "5 min 03 s"),
        (formats.seconds(8040), "2 h 14 min"),
        (formats.seconds(273_600), "3 d 04 h"),
        (formats.share(0.0664), "6.64 %"),
        (formats.microseconds(3921.4), "3.92 ms"),
        (formats.moment(0.0), "1970-01-01 00:00:00"),
        (formats.setting([1, None]), "[1, null]"),
    ],
)
def test_formats(text: str, expected: str) -> None:
    assert text == expected


def test_a_run_without_the_optional_parts_has_figures(tmp_path: Path) -> None:
    spec = RunSpec(restart=False, validation=False, tuning=False, export=False)
    headline = compute_headline(read_inputs(write_run(tmp_path, spec)))
    assert headline.validation_loss is None
    assert headline.tuning is None
    assert headline.lost_iterations == 0
    assert headline.attempts == 1
