"""One iteration's forward and backward passes, through Megatron's schedules."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import tee
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor

from primus.config.frozen import StageSettings

MicroBatches = Iterator[dict[str, Tensor]]
_INPUTS = ("tokens", "position_ids", "labels", "loss_mask")


def _loss(mask: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    # Megatron's contract: the sum to differentiate, its tokens, and what to report.
    total, tokens = (losses * mask).sum(), mask.sum()
    return total, tokens.to(torch.int), {"loss": torch.stack((total.detach(), tokens))}


def _forward(batches: MicroBatches, model: Any) -> tuple[Tensor, Any]:
    whole = next(batches)
    batch = get_batch_on_this_cp_rank({name: whole[name] for name in _INPUTS})
    losses = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    return losses, partial(_loss, batch["loss_mask"])


def forward_backward(
    settings: StageSettings,
    chunks: list[Any],
    batches: MicroBatches,
    *,
    num_microbatches: int,
    forward_only: bool = False,
) -> Tensor:
    """Run this rank's micro-batches through Megatron's schedule.

    Returns:
        this rank's sum of losses and of tokens, (2,) float64; zeros on ranks that hold no loss.
    """
    return summed(
        micro_batch_losses(
            settings,
            chunks,
            batches,
            num_microbatches=num_microbatches,
            forward_only=forward_only,
        )
    )


def summed(losses: Tensor) -> Tensor:
    """(n, 2) → (2,), in the order of the micro-batches."""
    total = torch.zeros(2, dtype=torch.float64)
    for one in losses:
        total += one
    return total


def micro_batch_losses(
    settings: StageSettings,
    chunks: list[Any],
    batches: MicroBatches,
    *,
    num_microbatches: int,
    forward_only: bool = False,
) -> Tensor:
    """Run this rank's micro-batches through Megatron's schedule.

    Returns:
        sum of losses and number of tokens of each, (n, 2) float64; n is 0 on ranks without a loss.
    """
    reports = get_forward_backward_func()(
        forward_step_func=_forward,
        # Every chunk of an interleaved schedule reads every micro-batch.
        data_iterator=batches if len(chunks) == 1 else list(tee(batches, len(chunks))),
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=num_microbatches,
        seq_length=settings.seq_length,
        micro_batch_size=settings.micro_batch_size,
        forward_only=forward_only,
    )
    first = parallel_state.get_tensor_model_parallel_rank() == 0
    if first and parallel_state.is_pipeline_last_stage():
        return torch.stack([report["loss"] for report in reports]).double().cpu()
    return torch.zeros(0, 2, dtype=torch.float64)
