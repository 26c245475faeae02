"""What DeepSeek-V2 and V3 have in common: latent attention, experts after some dense layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.families import layers
from primus.config.families.mapping import Field, Objection, Rule, wants, weight
from primus.config.layer_pattern import expert_layers

_YARN = {
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "factor": "rotary_scaling_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "original_max_position_embeddings": "original_max_position_embeddings",
}


def objections(s: Any) -> Iterator[Objection]:
    """What in the settings neither of the two has."""
    yield from wants(
        s,
        add_bias_linear=False,
        add_qkv_bias=False,
        multi_latent_attention=True,
        # The low-rank norms keep this epsilon, whatever the others have.
        norm_epsilon=1e-6,
        qk_layernorm=True,
        swiglu=True,
        use_rope_scaling=False,
    )
    if s.num_experts is None:
        yield Objection("num_experts", None, ("a number",))
        return
    if (shared := s.moe_shared_expert_intermediate_size) is None or shared % layers.expert_width(s):
        key = "moe_shared_expert_intermediate_size"
        yield Objection(key, shared, (f"a multiple of {layers.expert_width(s)}",))
    dense = _dense_layers(s)
    if any(expert_layers(s)[:dense]) or not all(expert_layers(s)[dense:]):
        wanted = f"([0]*{dense}+[1]*{s.num_layers - dense})"
        yield Objection("moe_layer_freq", s.moe_layer_freq, (wanted,))


def _dense_layers(s: Any) -> int:
    return [*expert_layers(s), True].index(True)


def fields(s: Any) -> Iterator[Field]:
    """The entries of config.json that both have."""
    yield from layers.common_fields(s)
    heads, width = s.num_attention_heads, layers.expert_width(s)
    shared = s.moe_shared_expert_intermediate_size // width
    yield Field("attention_bias", False, "add_bias_linear", False)
    yield Field("first_k_dense_replace", _dense_layers(s), "moe_layer_freq")
    yield Field("kv_lora_rank", s.kv_lora_rank, "kv_lora_rank")
    yield Field("moe_intermediate_size", width, "moe_ffn_hidden_size")
    yield Field("moe_layer_freq", 1, "moe_layer_freq", 1)
    yield Field("n_group", s.moe_router_num_groups or 1, "moe_router_num_groups")
    yield Field("n_routed_experts", s.num_experts, "num_experts")
    yield Field("n_shared_experts", shared, "moe_shared_expert_intermediate_size")
    yield Field("num_experts_per_tok", s.moe_router_topk, "moe_router_topk")
    yield Field("num_key_value_heads", heads, "num_attention_heads", heads)
    yield Field("q_lora_rank", s.q_lora_rank, "q_lora_rank")
    yield Field("qk_nope_head_dim", s.qk_head_dim, "qk_head_dim")
    yield Field("qk_rope_head_dim", s.qk_pos_emb_head_dim, "qk_pos_emb_head_dim")
    scaling = s.moe_router_topk_scaling_factor or 1.0
    yield Field("routed_scaling_factor", scaling, "moe_router_topk_scaling_factor")
    yield Field("topk_group", s.moe_router_group_topk or 1, "moe_router_group_topk")
    yield Field("v_head_dim", s.v_head_dim, "v_head_dim")
    yield from _rope_fields(s)


def _rope_fields(s: Any) -> Iterator[Field]:
    yield Field("rope_theta", float(s.rotary_base), "rotary_base", 10000.0)
    if s.rope_type == "rope":
        yield Field("rope_scaling.rope_type", "default", "rope_type", "default")
        return
    # The old name of rope_type, as published.
    yield Field("rope_scaling.type", "yarn", "rope_type", "default")
    for name, key in _YARN.items():
        yield Field(f"rope_scaling.{name}", getattr(s, key), key)


def rules(s: Any, copies: tuple[list[str], list[str]] = ([], [])) -> Iterator[Rule]:
    """The tensors of the decoder; `copies` as in `word_tables`."""
    yield from layers.word_tables(s, copies)
    for number, has_experts in enumerate(expert_layers(s)):
        prefixes = f"decoder.layers.{number}.", f"model.layers.{number}."
        yield from layer(s, *prefixes, has_experts=has_experts)
    yield layers.final_norm(s)


def layer(s: Any, megatron: str, name: str, *, has_experts: bool) -> Iterator[Rule]:
    """One transformer layer."""
    yield from layers.latent_attention(s, megatron, name)
    if not has_experts:
        yield from layers.dense_feed_forward(s, megatron, name)
        return
    norm = f"{name}post_attention_layernorm.weight"
    yield weight(f"{megatron}pre_mlp_layernorm.weight", norm, s.hidden_size)
    yield from layers.experts(s, megatron, f"{name}mlp.")
    width = s.moe_shared_expert_intermediate_size
    shared = f"{megatron}mlp.shared_experts.", f"{name}mlp.shared_experts."
    yield from layers.gated(*shared, width, s.hidden_size)
