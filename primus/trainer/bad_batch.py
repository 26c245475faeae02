"""A batch whose loss or gradient is not finite: stop, or go on without it as often as allowed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from primus.errors import TrainingError
from primus.trainer.not_finite import Origin

logger = logging.getLogger(__name__)


class RouterBiases:
    """What a step changes before its loss is known: the biases by which experts are balanced.

    Args:
        chunks: of the model; none where no batch may be skipped, which then costs nothing.
    """

    def __init__(self, chunks: Sequence[Any]) -> None:
        self._biases: list[Tensor] = [
            buffer
            for chunk in chunks
            for name, buffer in chunk.named_buffers()
            if name.endswith("expert_bias")
        ]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember them as they are; a few numbers per expert."""
        self._kept = [bias.clone() for bias in self._biases]

    @torch.no_grad()
    def put_back(self) -> None:
        """Have them be as they were."""
        for bias, kept in zip(self._biases, self._kept, strict=True):
            bias.copy_(kept)


def what_is_wrong(loss: float, grad_norm: float | None) -> str:
    """The number that is not finite, in words; empty where both are finite."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if grad_norm is not None and not math.isfinite(grad_norm):
        return f"the gradient norm is {grad_norm}"
    return ""


def skip_or_stop(iteration: int, wrong: str, where: Origin, *, skipped: int, allowed: int) -> str:
    """Decide on a bad batch; the same on every rank.

    Args:
        skipped: how many the run has skipped before. allowed: `skip_bad_batches`.

    Returns:
        what to log.

    Raises:
        TrainingError: no more may be skipped.
    """
    said = f"iteration {iteration}: {wrong} {where}"
    if skipped >= allowed:
        after = f", after {skipped} skipped batches" if skipped else ""
        raise TrainingError(
            f"{said}; nothing was saved{after}. To go on without such a batch, set "
            f"skip_bad_batches: {skipped + 1}"
        )
    return f"{said}; its step is skipped, {skipped + 1} of {allowed} that may be"
