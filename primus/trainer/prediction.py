"""What the layers of multi-token prediction lose, for the log: Megatron-core keeps it globally."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from torch import Tensor


def take_prediction_losses(layers: int, num_microbatches: int) -> Tensor:
    """This rank's share of the mean loss of each layer since the last call, (layers,) float64.

    The sum over all ranks is the mean over micro-batches, in nats per token.

    Args:
        num_microbatches: that this rank has run since the last call.
    """
    share = torch.zeros(layers, dtype=torch.float64)
    kept = MTPLossLoggingHelper.tracker.get("values")
    if kept is None:
        return share
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        share += kept.double().cpu() / (num_microbatches * ranks)
    kept.zero_()
    return share
