"""Checks of what the run watched while it trained: samples, losses, ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from primus import consumed
from primus.artifacts.report import Check
from primus.artifacts.run import MetricsRow
from primus.artifacts.spikes import Spikes
from primus.reports.curve import Curve
from primus.reports.inputs import Inputs

# (seed, pass, size) → ids of all samples in the order of that pass.
SampleOrder = Callable[[int, int, int], NDArray[np.int64]]

# Samples whose order is computed again, the newest: about a minute, and 2 GiB of memory.
MOST_SAMPLES = 1 << 27
_NAMED = 5
_NAME = "Samples consumed"


def samples_consumed(inputs: Inputs, order: SampleOrder | None) -> Check:
    """The checksum of what was read against the order of the samples."""
    rows = [row for row in inputs.curve.train if row.sample_checksum is not None]
    last = inputs.curve.train[-1]
    if order is None or not rows or rows[-1] is not last:
        return Check(name=_NAME, outcome="absent", detail="the metrics hold no checksum of them")
    size, seed = inputs.samples.samples.get("train", 0), inputs.samples.seed
    if not 0 < size <= MOST_SAMPLES:
        detail = f"not computed again: a pass has {size:,}"
        return Check(name=_NAME, outcome="absent", detail=detail)
    marks = list(_marks(rows, fresh=not inputs.train.settings.get("load_checkpoint")))
    wrong = _first_difference(marks, lambda number: order(seed, number, size), size)
    if wrong is not None:
        detail = f"others than in the order of the samples, up to iteration {wrong}"
        return Check(name=_NAME, outcome="failed", detail=detail)
    count = marks[-1][0] - marks[0][0]
    which = "all" if marks[0][0] == 0 else "the last"
    detail = f"{which} {count:,} as the order of the samples says, none skipped or repeated"
    return Check(name=_NAME, outcome="ok", detail=detail)


def _marks(rows: Sequence[MetricsRow], *, fresh: bool) -> Iterator[tuple[int, int, int]]:
    """Consumed samples, checksum and iteration, from the first that is looked at."""
    start = rows[-1].consumed_samples - MOST_SAMPLES
    if start <= 0 and fresh:
        yield 0, 0, 0
    for row in rows:
        if row.consumed_samples >= start:
            yield row.consumed_samples, int(row.sample_checksum or "0", 16), row.iteration


def _first_difference(
    marks: Sequence[tuple[int, int, int]], passes: consumed.Passes, size: int
) -> int | None:
    found = consumed.expected(passes, size, [samples for samples, _, _ in marks])
    for ((_, before, _), (_, after, iteration)), wanted in zip(pairwise(marks), found, strict=True):
        if consumed.added(before, wanted) != after:
            return iteration
    return None


def losses(curve: Curve) -> Check:
    """Whether all are finite, and where spikes begin: as the run saw them, and in the rows."""
    bad = [row.iteration for row in curve.train if not math.isfinite(row.loss or 0.0)]
    if bad:
        detail = f"not a number at iteration {bad[0]}"
        return Check(name="Losses", outcome="failed", detail=detail)
    seen = {row.iteration for row in curve.watched if row.what == "loss spike"}
    spikes = sorted(seen | set(loss_spikes(curve.train)))
    if spikes:
        where = ", ".join(f"{iteration:,}" for iteration in spikes[:_NAMED])
        more = f" and {len(spikes) - _NAMED} more" if len(spikes) > _NAMED else ""
        return Check(name="Losses", outcome="warning", detail=f"spike at iteration {where}{more}")
    return Check(name="Losses", outcome="ok", detail="finite, no spike")


def loss_spikes(rows: Sequence[MetricsRow]) -> Iterator[int]:
    """Iterations of logged rows with which a loss spike begins."""
    spikes = Spikes()
    for row in rows:
        if row.loss is not None and spikes.begins(row.loss) is not None:
            yield row.iteration


def noted(curve: Curve) -> Iterator[Check]:
    """Skipped batches and slow ranks, where there were any; in the words of the log."""
    for what, name in (("skipped batch", "Skipped batches"), ("slow rank", "Slow ranks")):
        said = [row.message for row in curve.watched if row.what == what]
        if said:
            more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
            detail = "; ".join(said[:_NAMED]) + more
            yield Check(name=name, outcome="warning", detail=detail)
