"""What the first rank says of numbers and ranks that are not as they should be: log and rows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from primus.artifacts.run import MetricsRow, WatchRow
from primus.artifacts.spikes import SPIKE_WINDOW, Spikes
from primus.files import tail
from primus.trainer.metrics import Metrics
from primus.trainer.not_finite import Origin
from primus.trainer.slow_ranks import Change

logger = logging.getLogger(__name__)

# Lines about spikes per attempt: a run that has more is unstable, and says so by then.
_SPIKES = 20
_KEPT = 64
_TAIL_BYTES = 65_536


class Watch:
    """Silent on all ranks but the first.

    Args:
        metrics: of the first rank. iteration: the last that is finished.
    """

    def __init__(
        self, metrics: Metrics | None, attempt: int, directory: Path, iteration: int
    ) -> None:
        self._metrics, self._attempt = metrics, attempt
        self._left = _SPIKES
        before = _last_losses(directory / "metrics.jsonl", iteration) if metrics else []
        self._spikes = Spikes(before)

    def loss(self, iteration: int, loss: float) -> None:
        """Take the loss of an iteration; a spike is told when it begins."""
        if self._metrics is None or not math.isfinite(loss):
            return
        middle = self._spikes.begins(loss)
        if middle is None or self._left == 0:
            return
        self._left -= 1
        last = "; no further ones are told in this attempt" if self._left == 0 else ""
        self._say(
            "loss spike",
            iteration,
            f"iteration {iteration}: loss spike: {loss:.4f}, where {middle:.4f} is the median of "
            f"the {SPIKE_WINDOW} before{last}",
        )

    def skipped(self, iteration: int, message: str, where: Origin) -> None:
        """A batch was skipped."""
        self._say("skipped batch", iteration, message, where.ranks, where.sample_ids)

    def slow(self, iteration: int, changes: Sequence[Change]) -> None:
        """Ranks that are slow now, or no longer."""
        for change in changes:
            message = f"iteration {iteration}: {change.message}"
            self._say("slow rank", iteration, message, change.ranks)

    def _say(
        self,
        what: Literal["skipped batch", "loss spike", "slow rank"],
        iteration: int,
        message: str,
        ranks: Sequence[int] = (),
        sample_ids: Sequence[int] = (),
    ) -> None:
        if self._metrics is None:
            return
        logger.warning("%s", message)
        self._metrics.watch(
            WatchRow(
                attempt=self._attempt,
                iteration=iteration,
                time=time.time(),
                what=what,
                message=message,
                ranks=list(ranks[:_KEPT]),
                sample_ids=list(sample_ids[:_KEPT]),
            )
        )


def _last_losses(metrics: Path, iteration: int) -> list[float]:
    """Logged losses up to `iteration`, the last of a long file; of one logged twice the later."""
    found: dict[int, float] = {}
    try:
        lines = tail(metrics, _TAIL_BYTES).splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = MetricsRow.model_validate_json(line)
        except ValidationError:
            continue
        if row.iteration <= iteration and row.loss is not None:
            found[row.iteration] = row.loss
    return [loss for _, loss in sorted(found.items())][-SPIKE_WINDOW:]
