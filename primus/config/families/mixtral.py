"""Mixtral without sliding windows: transformers' `MixtralForCausalLM`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.families import layers
from primus.config.families.mapping import Field, Objection, Rule, wants, weight

MODEL_TYPE = "mixtral"
ARCHITECTURE = "MixtralForCausalLM"
# Published names of gate, up and down.
_PROJECTIONS = ("w1", "w3", "w2")


def objections(s: Any) -> Iterator[Objection]:
    """What in the settings such a model has not."""
    yield from wants(
        s,
        add_bias_linear=False,
        add_qkv_bias=False,
        moe_layer_freq=1,
        moe_router_enable_expert_bias=False,
        moe_router_num_groups=None,
        moe_router_pre_softmax=False,
        moe_router_score_function="softmax",
        moe_router_topk_scaling_factor=None,
        moe_shared_expert_intermediate_size=None,
        mtp_num_layers=None,
        multi_latent_attention=False,
        qk_layernorm=False,
        swiglu=True,
        use_rope_scaling=False,
    )
    if s.num_experts is None:
        yield Objection("num_experts", None, ("a number",))
    if (width := layers.expert_width(s)) != s.ffn_hidden_size:
        yield Objection("moe_ffn_hidden_size", width, (s.ffn_hidden_size,))


def fields(s: Any) -> Iterator[Field]:
    """Its config.json."""
    yield from layers.common_fields(s)
    yield from layers.grouped_query_fields(s, head_dim=True)
    yield from layers.rope_fields(s, default_base=1e6)
    yield Field("num_experts_per_tok", s.moe_router_topk, "moe_router_topk")
    yield Field("num_local_experts", s.num_experts, "num_experts")
    yield Field("sliding_window", None, default=None)


def rules(s: Any) -> Iterator[Rule]:
    """Its tensors."""
    yield from layers.word_tables(s)
    for number in range(s.num_layers):
        megatron, name = f"decoder.layers.{number}.", f"model.layers.{number}."
        yield from layers.grouped_query_attention(s, megatron, name)
        norm = f"{name}post_attention_layernorm.weight"
        yield weight(f"{megatron}pre_mlp_layernorm.weight", norm, s.hidden_size)
        yield from layers.experts(s, megatron, f"{name}block_sparse_moe.", _PROJECTIONS)
    yield layers.final_norm(s)
