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


def flops_per_token(s: Any) -> float:
    """FLOPs of forward and backward for one token, without recomputation.

    Every weight of a linear layer costs 2 FLOPs forward and 4 backward; of the routed experts
    those to which a token is sent. Causal attention costs 2·(seq_length / 2) FLOPs per element of
    queries·keys and of scores·values, three times in all. A layer of multi-token prediction costs
    its own weights, its scores and the output layer once more. Norms, activations and the
    embedding look-up are not counted. PaLM, appendix B, with the causal half of the scores.
    """
    return float(6 * (_multiplied(s) + _scores(s)))


def _multiplied(s: Any) -> float:
    """Elements of the matrices that one token is multiplied with."""
    predictions = s.mtp_num_layers or 0
    total = float((1 + predictions) * vocabulary_table(s, "output", padded=False).size)
    for with_experts in expert_layers(s):
        total += _matrices(s, layer_weights(s, with_experts))
    return total + predictions * _matrices(s, prediction_weights(s))


def _matrices(s: Any, weights: Iterator[Weight]) -> float:
    sizes = (
        weight.size * (s.moe_router_topk / s.num_experts if weight.split == "expert" else 1)
        for weight in weights
        if weight.kind == "matrix"
    )
    return sum(sizes)


def _scores(s: Any) -> float:
    """Half the products of scores in all layers: the other half is masked."""
    if s.multi_latent_attention:
        widths = s.qk_head_dim + s.qk_pos_emb_head_dim + s.v_head_dim
    else:
        widths = 2 * head_size(s)
    layers = s.num_layers + (s.mtp_num_layers or 0)
    return float(layers * s.num_attention_heads * widths * s.seq_length / 2)
