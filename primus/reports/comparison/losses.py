"""Training losses of two runs, held against each other at equal tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from primus.artifacts.comparison import Estimate, LossDifference
from primus.artifacts.run import MetricsRow
from primus.reports.comparison.read import Run
from primus.reports.comparison.significance import MIN_ROWS, mean_of_differences

# Of the tokens that both have: the part of the curves whose difference is told.
LAST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Losses of both runs at the same tokens, in their order.

    Attributes:
        quarter: how many of them are in the last quarter of the common tokens.
    """

    new: list[float]
    old: list[float]
    quarter: int

    @property
    def last(self) -> int:
        """How many count: the last quarter, or of a short run so many as it takes to tell."""
        return max(self.quarter, min(MIN_ROWS, len(self.new)))

    @property
    def equal(self) -> bool:
        """There are some, and they are bitwise the same."""
        return bool(self.new) and self.new == self.old


def loss_difference(run: Run, against: Run, confidence: float) -> LossDifference:
    """Training loss of `run` minus that of `against`."""
    same = same_batches(run, against)
    comparable = run.identity.tokenizer_fingerprint == against.identity.tokenizer_fingerprint
    pairs = _pairs(run, against)
    first = len(pairs.new) - pairs.last
    apart = [a - b for a, b in zip(pairs.new[first:], pairs.old[first:], strict=True)]
    equal = len(pairs.new) if same and pairs.equal else 0
    mean = mean_of_differences(apart, confidence) if comparable and not equal else None
    if not comparable:
        words = (
            f"{run.label} and {against.label}: their tokenizers differ, so a loss per token is not "
            "the same thing in both."
        )
    elif equal:
        words = (
            f"{run.label} and {against.label}: training losses are bit for bit the same in all "
            f"{equal:,} rows that both have."
        )
    else:
        words = _words(run, against, mean, pairs, same)
    return LossDifference(
        run=run.label,
        against=against.label,
        mean=mean,
        rows=pairs.last,
        same_batches=same,
        equal_rows=equal,
        words=words,
    )


def same_batches(run: Run, against: Run) -> bool:
    """Whether both consume the same samples in the same order, as many at a time."""
    return (
        run.identity.samples_fingerprint == against.identity.samples_fingerprint
        and _samples_per_iteration(run) == _samples_per_iteration(against)
    )


def _samples_per_iteration(run: Run) -> float:
    last = run.curve.train[-1]
    return last.consumed_samples / max(last.iteration, 1)


def _with_loss(rows: Sequence[MetricsRow]) -> dict[int, float]:
    losses = ((row.consumed_tokens, row.loss) for row in rows if row.loss is not None)
    return {tokens: loss for tokens, loss in losses if math.isfinite(loss)}


def _pairs(run: Run, against: Run) -> _Pairs:
    """Where both have logged; where they log elsewhere, the other's is read off its curve.

    The losses between two rows of a run lie on a line here. That lends a row to two of the
    differences, which the stretches of `significance` are long enough for.
    """
    new, old = _with_loss(run.curve.train), _with_loss(against.curve.train)
    if not new or not old:
        return _Pairs(new=[], old=[], quarter=0)
    both = sorted(new.keys() & old.keys())
    end = min(max(new), max(old))
    if 2 * len(both) >= sum(tokens <= end for tokens in new):
        values = [old[tokens] for tokens in both]
    else:
        both = sorted(tokens for tokens in new if min(old) <= tokens <= end)
        at = sorted(old)
        values = [float(v) for v in np.interp(both, at, [old[tokens] for tokens in at])]
    last = sum(tokens > (1 - LAST_SHARE) * end for tokens in both)
    return _Pairs(new=[new[tokens] for tokens in both], old=values, quarter=last)


def _words(run: Run, against: Run, mean: Estimate | None, pairs: _Pairs, same: bool) -> str:
    rows = pairs.last
    if mean is None:
        return (
            f"{run.label} and {against.label}: {rows} rows at common tokens, too few to tell "
            f"their training losses apart (at least {MIN_ROWS} are needed)."
        )
    how = "on the same batches" if same else "on other batches"
    part = "quarter of their common tokens" if rows == pairs.quarter else "rows that both have"
    where = f"over the last {part}, {how}"
    bounds = f"{100 * mean.confidence:.4g} % interval: {mean.low:+.4f} to {mean.high:+.4f} nats"
    if not mean.significant:
        return (
            f"{run.label} and {against.label}: no difference of the training losses can be told "
            f"from the noise {where} ({bounds}; {rows} rows)."
        )
    sign = "lower" if mean.value < 0 else "higher"
    return (
        f"{run.label} has a training loss {abs(mean.value):.3g} nats {sign} than {against.label} "
        f"{where} ({bounds}; {rows} rows). How far another seed would move it, one run each "
        "cannot say."
    )
