"""Model FLOPs per token, the numerator of every utilisation figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.layer_pattern import expert_layers
from primus.config.weights import (
    Weight,
    head_size,
    layer_weights,
    prediction_weights,
    vocabulary_table,
)

# One multiplication and one addition, forward and twice backward.
_PER_WEIGHT = 6
_PARTS = {"mlp": ("dense_ffn",), "moe": ("experts", "shared_experts", "router")}


def flops_per_token(s: Any) -> float:
    """FLOPs of forward and backward for one token, without recomputation.

    Every weight of a linear layer costs 2 FLOPs forward and 4 backward; of the routed experts
    those to which a token is sent. Causal attention costs 2·(seq_length / 2) FLOPs per element of
    queries·keys and of scores·values, three times in all. A layer of multi-token prediction costs
    its own weights, its scores and the output layer once more. Norms, activations and the
    embedding look-up are not counted. PaLM, appendix B, with the causal half of the scores.
    """
    layers = sum(layer_flops(s, with_experts) for with_experts in expert_layers(s))
    ahead = (s.mtp_num_layers or 0) * prediction_flops(s)
    return layers + ahead + output_flops(s)


def layer_flops(s: Any, with_experts: bool) -> float:
    """FLOPs of one layer for one token, forward and backward."""
    return _PER_WEIGHT * (_matrices(s, layer_weights(s, with_experts)) + _scores(s))


def module_flops(s: Any, with_experts: bool, module: str) -> float:
    """FLOPs of one forward pass through a module of selective recomputation, for one token."""
    if module == "core_attn":
        return 2 * _scores(s)
    if module == "mla_up_proj":
        query = (s.q_lora_rank or 0) * (s.qk_head_dim + s.qk_pos_emb_head_dim)
        key_value = s.kv_lora_rank * (s.qk_head_dim + s.v_head_dim)
        return float(2 * s.num_attention_heads * (query + key_value))
    parts = _PARTS.get(module, ())
    chosen = (weight for weight in layer_weights(s, with_experts) if weight.part in parts)
    return 2 * _matrices(s, chosen)


def prediction_flops(s: Any) -> float:
    """FLOPs of one layer of multi-token prediction, its pass through the output layer included."""
    own = _PER_WEIGHT * (_matrices(s, prediction_weights(s)) + _scores(s))
    return own + output_flops(s)


def output_flops(s: Any) -> float:
    """FLOPs of the output layer for one token, forward and backward."""
    return float(_PER_WEIGHT * vocabulary_table(s, "output", padded=False).size)


def _matrices(s: Any, weights: Iterator[Weight]) -> float:
    """Elements of the matrices that one token is multiplied with."""
    sizes = (
        weight.size / s.num_experts * s.moe_router_topk if weight.split == "expert" else weight.size
        for weight in weights
        if weight.kind == "matrix"
    )
    return float(sum(sizes))


def _scores(s: Any) -> float:
    """Products of one layer's scores for one token: half of them, the rest is masked."""
    if s.multi_latent_attention:
        widths = s.qk_head_dim + s.qk_pos_emb_head_dim + s.v_head_dim
    else:
        widths = 2 * head_size(s)
    return float(s.num_attention_heads * widths * s.seq_length / 2)
