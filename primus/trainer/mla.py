"""Multi-latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) of the local spec.

Parameters have the names that upstream's transformer-engine spec gives, so that checkpoints fit
both. Upstream's own local spec splits the down-projections over tensor-parallel ranks and never
reduces the gradient of the rotary keys; here they are replicated, and it is reduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from megatron.core.models.common.embeddings import RotaryEmbedding, YarnRotaryEmbedding
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import _yarn_get_mscale
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from primus.trainer.attention import causal_attention, in_blocks, refuse_inference
from primus.trainer.kernels import latent_heads
from primus.trainer.linear import ColumnParallelLinear, RowParallelLinear, linear
from primus.trainer.norm_linear import NormColumnParallelLinear


class ReplicatedLinear(nn.Module):
    """Linear layer that every tensor-parallel rank holds whole."""

    def __init__(self, input_size: int, output_size: int, config: Any) -> None:
        super().__init__()
        self.gemm = config.gemm
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.empty(output_size, input_size, dtype=config.params_dtype, device=device)
        )
        if config.perform_initialization:
            config.init_method(self.weight)
        # Each rank then sees its part of the sequence: the gradients have to be summed.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return linear(x, self.weight, None, self.gemm)


@dataclass
class RotaryTable:
    """Cosines and sines of one model chunk, made at first use and shared by its layers."""

    made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False)

    def __call__(self, config: Any, length: int, cp_group: Any) -> tuple[Tensor, Tensor]:
        """Cosines and sines (s, rotary head / 2) float32 of this rank's positions.

        Args:
            length: of the sequence over all context-parallel ranks.
        """
        if length not in self.made:
            angles, factor = _angles(config, length, cp_group)
            half = angles[:, 0, 0, : angles.shape[-1] // 2].float()
            self.made = {length: (half.cos() * factor, half.sin() * factor)}
        return self.made[length]


def _angles(config: Any, length: int, cp_group: Any) -> tuple[Tensor, float]:
    common = {
        "rotary_base": config.rotary_base,
        "use_cpu_initialization": config.use_cpu_initialization,
        "cp_group": cp_group,
    }
    if config.rope_type == "rope":
        plain = RotaryEmbedding(config.qk_pos_emb_head_dim, rotary_percent=1.0, **common)
        return plain(length), 1.0
    yarn = YarnRotaryEmbedding(
        config.qk_pos_emb_head_dim,
        scaling_factor=config.rotary_scaling_factor,
        original_max_position_embeddings=config.original_max_position_embeddings,
        beta_fast=config.beta_fast,
        beta_slow=config.beta_slow,
        mscale=config.mscale,
        mscale_all_dim=config.mscale_all_dim,
        **common,
    )
    return yarn(length)  # type: ignore[no-any-return]


class LatentSelfAttention(MegatronModule):
    """Causal self-attention whose keys and values come from one low-rank vector per position."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        rotary: RotaryTable,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        self.tp_group, self.cp_group = groups.tp, groups.cp
        self.layer_number, self.rotary = layer_number, rotary
        self.recompute_up_proj = (
            config.recompute_granularity == "selective"
            and "mla_up_proj" in config.recompute_modules
        )
        heads, hidden = config.num_attention_heads, config.hidden_size
        self.heads = heads // groups.tp.size()
        query_head = config.qk_head_dim + config.qk_pos_emb_head_dim
        mscale = _yarn_get_mscale(config.rotary_scaling_factor, config.mscale_all_dim)
        self.softmax_scale = mscale * mscale / math.sqrt(query_head)
        column = {
            "config": config,
            "init_method": config.init_method,
            "bias": False,
            "gather_output": False,
            "tp_group": groups.tp,
        }
        up = NormColumnParallelLinear if config.qk_layernorm else ColumnParallelLinear
        if config.q_lora_rank is None:
            self.linear_q_proj = ColumnParallelLinear(hidden, heads * query_head, **column)
        else:
            self.linear_q_down_proj = ReplicatedLinear(hidden, config.q_lora_rank, config)
            self.linear_q_up_proj = up(config.q_lora_rank, heads * query_head, **column)
        self.linear_kv_down_proj = ReplicatedLinear(
            hidden, config.kv_lora_rank + config.qk_pos_emb_head_dim, config
        )
        self.linear_kv_up_proj = up(
            config.kv_lora_rank, heads * (config.qk_head_dim + config.v_head_dim), **column
        )
        self.linear_proj = RowParallelLinear(
            heads * config.v_head_dim,
            hidden,
            config=config,
            init_method=config.output_layer_init_method,
            bias=config.add_bias_linear,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=groups.tp,
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(s, b, hidden) → (s, b, hidden) and the output's bias, if it is added later."""
        refuse_inference(kwargs)
        config = self.config
        queries = hidden_states
        if config.q_lora_rank is not None:
            queries = self.linear_q_down_proj(hidden_states)
        latent, rotary_key = self.linear_kv_down_proj(hidden_states).split(
            (config.kv_lora_rank, config.qk_pos_emb_head_dim), -1
        )
        up = CheckpointWithoutOutput(fp8=None) if self.recompute_up_proj else None
        dropout = config.attention_dropout if self.training else 0.0
        positions = queries.shape[0] * (self.tp_group.size() if config.sequence_parallel else 1)
        blocks = in_blocks(config, queries, positions, dropout)
        heads = partial(self._heads, pad=not blocks)
        project = partial(up.checkpoint, heads) if up else heads
        query, key, value = project(queries, latent, rotary_key)
        out = causal_attention(
            query, key, value, scale=self.softmax_scale, dropout=dropout, blocks=blocks
        )
        if up:
            up.discard_output_and_register_recompute(out)
        out = out[..., : config.v_head_dim].flatten(2)
        return self.linear_proj(out)  # type: ignore[no-any-return]

    def _heads(
        self, queries: Tensor, latent: Tensor, rotary_key: Tensor, *, pad: bool
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values (b, heads of this rank, s, ·) from what is low-rank."""
        up = self.linear_q_proj if self.config.q_lora_rank is None else self.linear_q_up_proj
        wide, _ = up(queries)
        keys_values, _ = self.linear_kv_up_proj(latent)
        s, b, _ = wide.shape
        cos, sin = self.rotary(self.config, s * self.cp_group.size(), self.cp_group)
        return latent_heads(
            wide.view(s, b, self.heads, -1),
            keys_values.view(s, b, self.heads, -1),
            self._whole(rotary_key),
            cos,
            sin,
            self.config.qk_head_dim,
            pad=pad,
        )

    def _whole(self, rotary_key: Tensor) -> Tensor:
        # Every rank's heads use the same rotary key: backward sums its gradient over the ranks.
        if self.config.sequence_parallel:
            gathered: Tensor = gather_from_sequence_parallel_region(rotary_key, group=self.tp_group)
            return gathered
        copied: Tensor = copy_to_tensor_model_parallel_region(rotary_key, group=self.tp_group)
        return copied
