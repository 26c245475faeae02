"""Causal attention of the local spec: grouped queries, and the core that all attention shares."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from primus.config.kept_scores import keeps_scores
from primus.trainer import attention_blocks
from primus.trainer.context_parallel import gathered_attention
from primus.trainer.kernels import split_rotate

logger = logging.getLogger(__name__)


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    blocks: Literal["keep", "again"] | None = None,
) -> Tensor:
    """Scaled dot-product attention in which a position sees itself and what came before.

    Args:
        query: (b, heads, s, head). key: (b, groups, s, head), heads a multiple of groups. value:
            as key; in blocks its heads may be of another size.
        scale: factor of the scores; None: 1 / sqrt(head).
        blocks: as `in_blocks` says.

    Returns:
        (s, b, heads, value head).
    """
    group = parallel_state.get_context_parallel_group()
    if group.size() > 1:
        return gathered_attention(query, key, value, group=group, scale=scale, dropout=dropout)
    if blocks:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        keep = blocks == "keep"
        out = attention_blocks.block_attention(query, key, value, scale, keep=keep)
        return out.permute(2, 0, 1, 3)
    how: dict[str, Any] = {
        "dropout_p": dropout,
        "is_causal": True,
        "scale": scale,
        "enable_gqa": query.shape[1] > key.shape[1],
    }
    if query.is_cuda:
        kind = (query.shape, key.shape, value.shape, query.dtype, torch.is_grad_enabled())
        _say_if_not_fused(kind, lambda: torch._fused_sdp_choice(query, key, value, **how))
    out = F.scaled_dot_product_attention(query, key, value, **how)
    return out.permute(2, 0, 1, 3)


_asked: set[Any] = set()


def _say_if_not_fused(kind: Any, choice: Callable[[], int]) -> None:
    """Warn, once per kind of operands, where torch has no fused kernel for them."""
    if kind in _asked:
        return
    _asked.add(kind)
    if choice() == SDPBackend.MATH.value:
        shapes = ", ".join(str(tuple(shape)) for shape in kind[:3])
        logger.warning(
            "attention of %s in %s is not fused on this GPU: slow, and in memory of all scores",
            shapes,
            kind[3],
        )


def in_blocks(
    config: Any, like: Tensor, positions: int, dropout: float
) -> Literal["keep", "again"] | None:
    """Whether a layer's attention is computed in blocks, and whether these keep their scores.

    Args:
        like: of the operands' type and device. positions: of the whole sequence.
    """
    whole = parallel_state.get_context_parallel_world_size() == 1 and dropout == 0.0
    if not whole or not attention_blocks.serves(like, positions):
        return None
    return "keep" if keeps_scores(config, positions) else "again"


def refuse_inference(arguments: dict[str, Any]) -> None:
    """Refuse what upstream's attention takes besides training on whole sequences."""
    if arguments.get("inference_context") is not None or arguments.get("packed_seq_params"):
        raise NotImplementedError("inference and packed sequences need transformer-engine")


class SdpaSelfAttention(SelfAttention):
    """Causal self-attention: one compiled split-and-rotate, then scaled dot-product attention."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(s, b, hidden) → (s, b, hidden) and the output's bias, if it is added later."""
        refuse_inference(kwargs)
        if rotary_pos_emb is None:
            raise NotImplementedError("attention without rotary embedding")
        cos, sin = _rotary_table(rotary_pos_emb)
        mixed, _ = self.linear_qkv(hidden_states)
        s, b, _ = mixed.shape
        groups = self.num_query_groups_per_partition
        queries = self.num_attention_heads_per_partition // groups
        head = self.hidden_size_per_attention_head
        mixed = self._normalise(mixed.view(s, b, groups, queries + 2, head), queries)
        q, k, v = split_rotate(mixed, cos[:s], sin[:s], queries)
        dropout = self.config.attention_dropout if self.training else 0.0
        blocks = in_blocks(self.config, q, s, dropout)
        out = causal_attention(q, k, v, dropout=dropout, blocks=blocks)
        return self.linear_proj(out.reshape(s, b, -1))  # type: ignore[no-any-return]

    def _normalise(self, mixed: Tensor, queries: int) -> Tensor:
        if not self.config.qk_layernorm:
            return mixed
        query, key, value = mixed.split((queries, 1, 1), dim=3)
        return torch.cat((self.q_layernorm(query), self.k_layernorm(key), value), dim=3)


@lru_cache(maxsize=4)
def _rotary_table(angles: Tensor) -> tuple[Tensor, Tensor]:
    # Upstream hands every layer the same cached tensor of angles (s, 1, 1, head).
    flat = angles.view(angles.shape[0], angles.shape[-1]).float()
    return flat.cos(), flat.sin()
