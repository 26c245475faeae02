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
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
    get_mtp_num_layers_to_build,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor, nn

from primus.trainer.attention import SdpaSelfAttention
from primus.trainer.experts import expert_layer_spec
from primus.trainer.kernels import rms_norm
from primus.trainer.linear import ColumnParallelLinear, RowParallelLinear
from primus.trainer.mla import LatentSelfAttention, RotaryTable
from primus.trainer.mlp import feed_forward_spec
from primus.trainer.norm_linear import NormColumnParallelLinear


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


def _attention_spec(config: Any) -> ModuleSpec:
    params: dict[str, Any] = {"attn_mask_type": AttnMaskType.causal}
    if config.multi_latent_attention:
        params["rotary"] = RotaryTable()
        return ModuleSpec(module=LatentSelfAttention, params=params)
    norm = RMSNorm if config.qk_layernorm else IdentityOp
    return ModuleSpec(
        module=SdpaSelfAttention,
        params=params,
        submodules=SelfAttentionSubmodules(
            linear_qkv=NormColumnParallelLinear,
            core_attention=IdentityOp,
            linear_proj=RowParallelLinear,
            q_layernorm=norm,
            k_layernorm=norm,
        ),
    )


def layer_spec(config: Any, attention: ModuleSpec, *, experts: bool) -> ModuleSpec:
    """One transformer layer with that attention, dense or with experts.

    A norm belongs to the linear layer after it where that alone reads it, as in transformer-engine:
    checkpoints fit both.
    """
    dense = feed_forward_spec(NormColumnParallelLinear, gated=config.gated_linear_unit)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm if config.multi_latent_attention else IdentityOp,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm if experts else IdentityOp,
            mlp=expert_layer_spec(config) if experts else dense,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def block_spec(config: Any, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage and the final norm; equal layers are one object."""
    attention = _attention_spec(config)
    kinds = {
        kind: layer_spec(config, attention, experts=kind) for kind in set(config.expert_layers)
    }
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    own = config.expert_layers[first : first + count]
    return TransformerBlockSubmodules(layer_specs=[kinds[kind] for kind in own], layer_norm=RMSNorm)


def mtp_spec(config: Any, vp_stage: int | None) -> MultiTokenPredictionBlockSubmodules | None:
    """The layers that predict further tokens, of the last layer's kind; None where none are."""
    count = get_mtp_num_layers_to_build(config, vp_stage=vp_stage)
    if count == 0:
        return None
    inner = layer_spec(config, _attention_spec(config), experts=config.expert_layers[-1])
    layer = ModuleSpec(
        module=MultiTokenPredictionLayer,
        submodules=MultiTokenPredictionLayerSubmodules(
            enorm=RMSNorm,
            hnorm=RMSNorm,
            eh_proj=ColumnParallelLinear,
            transformer_layer=inner,
            layer_norm=RMSNorm,
        ),
    )
    return MultiTokenPredictionBlockSubmodules(layer_specs=[layer] * count)
