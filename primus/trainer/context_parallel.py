"""Attention where each rank holds two chunks of every sequence.

Sequences are cut as upstream cuts them (`megatron.core.utils.get_batch_on_this_cp_rank`): of 2n
chunks rank r holds the chunks r and 2n-1-r, so that causal attention costs every rank the same.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: distributed.ProcessGroup,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Causal scaled dot-product attention over the sequences of all ranks of `group`.

    Keys and values are gathered; the gradients of a rank's own are summed over the group.

    Args:
        q: (b, heads, s, head), the two chunks of this rank one after the other. k: (b, groups, s,
            head). v: (b, groups, s, value head); heads is a multiple of groups.
        scale: of the products; None is 1 / sqrt(head).

    Returns:
        (s, b, heads, value head).
    """
    chunk = q.shape[2] // 2
    keys, values = _gather(k, v, group)
    first, last = group.rank(), 2 * group.size() - 1 - group.rank()
    out = torch.cat(
        [
            F.scaled_dot_product_attention(
                part,
                keys[:, :, : (number + 1) * chunk],
                values[:, :, : (number + 1) * chunk],
                attn_mask=causal_lower_right(chunk, (number + 1) * chunk),
                dropout_p=dropout,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            for part, number in zip(q.split(chunk, dim=2), (first, last), strict=True)
        ],
        dim=2,
    )
    return out.permute(2, 0, 1, 3)


def _gather(k: Tensor, v: Tensor, group: distributed.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Keys and values of the whole sequence in its order, (b, groups, n·s, ·), in one exchange."""
    ranks, (b, groups, s, head) = group.size(), k.shape
    rows = torch.cat((k, v), dim=-1).permute(2, 0, 1, 3).contiguous()
    gathered = gather_from_sequence_parallel_region(rows, group=group)
    halves = gathered.view(ranks, 2, s // 2, b, groups, -1)
    ordered = torch.cat((halves[:, 0], halves[:, 1].flip(0))).reshape(ranks * s, b, groups, -1)
    keys, values = ordered.permute(1, 2, 0, 3).split((head, v.shape[-1]), dim=-1)
    return keys, values
