"""The local layer spec: SDPA attention and compiled kernels in Megatron's transformer layer.

Reached only without transformer-engine. Layers are replaced through `ModuleSpec`s.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from primus.trainer.attention import SdpaSelfAttention
from primus.trainer.kernels import rms_norm, swiglu
from primus.trainer.linear import ColumnParallelLinear, RowParallelLinear


class RMSNorm(nn.Module):
    """RMSNorm whose weight's gradient is reduced under sequence parallelism (upstream's is not)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (s, b, hidden)."""
        return rms_norm(x, self.weight, self.eps)


class SwiGLUMLP(MLP):
    """Gated feed-forward layer with one compiled activation."""

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(s, b, hidden) → (s, b, hidden) and the output's bias, if it is added later."""
        wide, bias = self.linear_fc1(hidden_states)
        if bias is not None:
            wide = wide + bias
        return self.linear_fc2(swiglu(wide))  # type: ignore[no-any-return]


def layer_spec(config: TransformerConfig) -> ModuleSpec:
    """One dense transformer layer."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SdpaSelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=IdentityOp,
                    linear_proj=RowParallelLinear,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=SwiGLUMLP if config.gated_linear_unit else MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
            # The names that transformer-engine's fused layers give, so that checkpoints fit both.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage and the final norm."""
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer_spec(config)] * count, layer_norm=RMSNorm)
