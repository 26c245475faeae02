"""The headline figures, computed from the raw artefacts alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from primus.artifacts.report import Headline, Spread, TimeBudget
from primus.artifacts.run import Attempt, MetricsRow, ValidationRow
from primus.reports.curve import Curve
from primus.reports.gemm import tuning_figures
from primus.reports.inputs import Inputs


def spread(values: Sequence[float]) -> Spread:
    """5th, 50th and 95th percentile with linear interpolation; `values` is not empty."""
    p5, median, p95 = np.percentile(np.asarray(values, dtype=np.float64), [5, 50, 95])
    return Spread(p5=float(p5), median=float(median), p95=float(p95))


def compute_headline(inputs: Inputs) -> Headline:
    """Every headline figure of a run."""
    train, curve = inputs.train, inputs.curve
    rows = curve.train
    shares = [row.peak_share for row in rows if row.peak_share is not None]
    wall = wall_seconds(inputs)
    budget = time_budget(curve, inputs.attempts, wall)
    pace = spread([row.seconds_per_iteration for row in rows])
    losses = [row.loss for row in curve.valid]
    return Headline(
        iterations=rows[-1].iteration,
        train_iters=inputs.setting("train", "train_iters"),
        consumed_samples=rows[-1].consumed_samples,
        consumed_tokens=rows[-1].consumed_tokens,
        rows=len(rows),
        superseded_rows=len(curve.superseded),
        lost_iterations=curve.lost_iterations,
        final_loss=curve.final_loss,
        validation_loss=losses[-1] if losses else None,
        best_validation_loss=min(losses, default=None),
        unigram_entropy=inputs.data.unigram_entropy,
        parameters=train.parameters,
        flops_per_token=train.flops_per_token,
        tokens_per_second=spread([row.tokens_per_second for row in rows]),
        tflops_per_second=spread([row.tflops_per_second for row in rows]),
        peak_share=spread(shares) if shares else None,
        seconds_per_iteration=pace,
        skipped_iterations=rows[-1].skipped_iterations,
        skipped_batches=rows[-1].skipped_batches,
        attempts=max(len(inputs.attempts), 1),
        wall_seconds=wall,
        device_hours=sum(duration(a, curve) * a.world_size for a in inputs.attempts) / 3600,
        time_budget=budget,
        effective_share=budget.compute / wall if wall > 0 else 0.0,
        checkpoints=len(train.checkpoints),
        checkpoint_bytes=sum(checkpoint.bytes for checkpoint in train.checkpoints),
        tuning=tuning_figures(inputs.tuning, train.tuned, microbatches(inputs), pace.median),
    )


def microbatches(inputs: Inputs) -> int | None:
    """Microbatches per iteration and rank; null where the training settings are not known."""
    whole, part = (inputs.setting("train", f"{n}_batch_size") for n in ("global", "micro"))
    layout = ("tensor", "pipeline")
    sizes = [inputs.setting("train", f"{name}_model_parallel_size") for name in layout]
    sizes.append(inputs.setting("train", "context_parallel_size"))
    if not inputs.attempts or not whole or not part:
        return None
    data_parallel: int = inputs.attempts[-1].world_size // math.prod(size or 1 for size in sizes)
    return int(whole) // (int(part) * max(int(data_parallel), 1))


def ended(attempt: Attempt, curve: Curve) -> float:
    """When an attempt ended; the time of its last row where it was killed without a word."""
    if attempt.finished is not None:
        return attempt.finished
    rows: list[MetricsRow | ValidationRow] = [*curve.train, *curve.superseded, *curve.valid]
    times = [row.time for row in rows if row.attempt == attempt.number]
    return max(times, default=attempt.started)


def duration(attempt: Attempt, curve: Curve) -> float:
    """Seconds that an attempt ran."""
    return max(ended(attempt, curve) - attempt.started, 0.0)


def wall_seconds(inputs: Inputs) -> float:
    """From the first start to the end of the last attempt."""
    if not inputs.attempts:
        return inputs.train.seconds
    ends = [ended(attempt, inputs.curve) for attempt in inputs.attempts]
    return max(ends) - min(attempt.started for attempt in inputs.attempts)


def time_budget(curve: Curve, attempts: Sequence[Attempt], wall: float) -> TimeBudget:
    """Split the wall time; the parts add up to it, except where the clocks disagree."""
    compute = sum(row.seconds_per_iteration * count for row, count in curve.covered())
    lost = _lost_seconds(curve)
    validation = sum(row.seconds for row in curve.valid)
    between = sum(
        max(after.started - ended(before, curve), 0.0) for before, after in pairwise(attempts)
    )
    saving = sum(attempt.save_seconds for attempt in attempts)
    other = max(wall - compute - lost - validation - saving - between, 0.0)
    return TimeBudget(
        compute=compute,
        validation=validation,
        lost=lost,
        saving=saving,
        other=other,
        between=between,
    )


def _lost_seconds(curve: Curve) -> float:
    """Iterations that were run again, at the median pace."""
    pace = spread([row.seconds_per_iteration for row in curve.train]).median
    return curve.lost_iterations * pace
