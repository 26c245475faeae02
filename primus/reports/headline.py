"""The headline figures, computed from the raw artefacts alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from primus.artifacts.report import ExpertFigures, Headline, Spread
from primus.reports.budget import device_hours, time_budget, wall_seconds
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
    wall = wall_seconds(inputs.attempts, curve) if inputs.attempts else train.seconds
    budget = time_budget(curve, inputs.attempts, wall, inputs.phases)
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
        device_hours=device_hours(inputs.attempts, curve),
        time_budget=budget,
        effective_share=(budget.compute + budget.data) / wall if wall > 0 else 0.0,
        peak_bytes=max(peak_by_rank(curve), default=None),
        device_bytes=min(curve.memory[-1].device_bytes) if curve.memory else None,
        experts=expert_figures(curve),
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


def peak_by_rank(curve: Curve) -> list[int]:
    """The most that each rank of the last attempt held, in all attempts with as many ranks."""
    if not curve.memory:
        return []
    ranks = len(curve.memory[-1].peak_bytes)
    rows = [row.peak_bytes for row in curve.memory if len(row.peak_bytes) == ranks]
    return [max(values) for values in zip(*rows, strict=True)]


def expert_figures(curve: Curve) -> ExpertFigures | None:
    """How even the experts were at last; null for a model without."""
    if not curve.experts:
        return None
    last = curve.experts[-1]
    ratios = [max(tokens) * len(tokens) / sum(tokens) for tokens in last.tokens]
    return ExpertFigures(
        layers=len(last.layers),
        experts=len(last.tokens[0]),
        busiest=max(ratios),
        median=float(np.median(ratios)),
        idle=sum(count == 0 for tokens in last.tokens for count in tokens),
    )
