"""Loss spikes as a run tells them: once, not too often, and by the losses before a resume."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_report_figures import metrics_row

from primus.artifacts.run import WatchRow
from primus.artifacts.spikes import SPIKE_WINDOW, Spikes
from primus.trainer.metrics import Metrics
from primus.trainer.outcome import read_metrics
from primus.trainer.watch import _SPIKES, Watch


def begun(losses: list[float]) -> list[int]:
    spikes = Spikes()
    return [n for n, loss in enumerate(losses) if spikes.begins(loss) is not None]


def test_a_spike_begins_once_however_long_it_is() -> None:
    flat = [3.0 + 0.01 * (n % 3) for n in range(40)]
    assert begun(flat) == []
    assert begun([*flat[:20], 6.0, 6.1, 6.0, *flat[:20], 7.0, *flat[:3]]) == [20, 43]
    assert begun([*flat[: SPIKE_WINDOW - 1], 9.0]) == [], "too few to hold it against"
    assert begun([*flat, 3.4]) == [], "less than is worth a line"


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    made = Metrics(tmp_path, train_iters=100)
    yield made
    made.close()


def rows(directory: Path) -> list[WatchRow]:
    return [row for row in read_metrics(directory) if isinstance(row, WatchRow)]


def test_the_window_survives_a_resume(tmp_path: Path, metrics: Metrics) -> None:
    """Rows beyond the checkpoint, of an attempt that lost them, do not count."""
    for iteration in range(1, 31):
        metrics.train(metrics_row(iteration, loss=3.0 if iteration <= 20 else 50.0))
    watch = Watch(metrics, 2, tmp_path, 20)
    watch.loss(21, 3.1)
    assert rows(tmp_path) == []
    watch.loss(22, math.nan)
    watch.loss(23, 5.0)
    (row,) = rows(tmp_path)
    assert (row.iteration, row.what, row.attempt) == (23, "loss spike", 2)
    assert "loss spike: 5.0000, where 3.0000 is the median of the 16 before" in row.message
    anew = Watch(metrics, 2, tmp_path / "nowhere", 20)
    anew.loss(21, 9.0)
    assert len(rows(tmp_path)) == 1


def test_their_number_is_bounded(
    tmp_path: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(metrics, 1, tmp_path, 0)
    for iteration in range(2000):
        watch.loss(iteration, 9.0 if iteration % 20 == 19 else 3.0)
    assert len(rows(tmp_path)) == len(caplog.records) == _SPIKES
    assert "no further ones are told" in rows(tmp_path)[-1].message


def test_other_ranks_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(None, 1, tmp_path, 0)
    for iteration in range(40):
        watch.loss(iteration, 99.0 if iteration == 30 else 3.0)
    assert caplog.records == []
