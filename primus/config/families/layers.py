"""The parts that families have in common: attention, feed-forward layers, experts, embeddings.

Megatron's names are those of its transformer-engine layers; the local layers save under the same.
Published names are those of the Llama family, on which the others build.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from primus.config.families.mapping import Block, Field, Rule, interleaved, piled, weight
from primus.config.weights import head_size, query_groups

_LLAMA_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def word_tables(s: Any, copies: tuple[list[str], list[str]] = ([], [])) -> Iterator[Rule]:
    """Embedding and output layer; Megatron pads their rows.

    Args:
        copies: published tensors equal to the one and to the other.
    """
    tables = [("embedding.word_embeddings", "model.embed_tokens", copies[0])]
    if s.untie_embeddings_and_output_weights:
        tables.append(("output_layer", "lm_head", copies[1]))
    for megatron, name, equal in tables:
        block = Block(f"{name}.weight", 0, s.vocab_size)
        yield Rule(f"{megatron}.weight", (block,), s.hidden_size, tuple(equal), padded=True)


def final_norm(s: Any) -> Rule:
    """The norm before the output layer."""
    return weight("decoder.final_layernorm.weight", "model.norm.weight", s.hidden_size)


def grouped_query_attention(s: Any, megatron: str, name: str) -> Iterator[Rule]:
    """Attention with its norm. Per group, Megatron has its queries, one key and one value.

    Args:
        megatron, name: prefix of the layer in both, with the dot.
    """
    heads, groups, head = s.num_attention_heads, query_groups(s), head_size(s)
    qkv, attention = f"{megatron}self_attention.linear_qkv", f"{name}self_attn"
    parts = (("q_proj", heads // groups * head), ("k_proj", head), ("v_proj", head))
    norm = f"{name}input_layernorm.weight"
    yield weight(f"{qkv}.layer_norm_weight", norm, s.hidden_size)
    for kind in ("weight", "bias") if s.add_qkv_bias else ("weight",):
        columns = s.hidden_size if kind == "weight" else None
        named = [(f"{attention}.{part}.{kind}", rows) for part, rows in parts]
        yield interleaved(f"{qkv}.{kind}", named, groups, columns)
    out = f"{megatron}self_attention.linear_proj.weight"
    yield weight(out, f"{attention}.o_proj.weight", s.hidden_size, heads * head)


def latent_attention(s: Any, megatron: str, name: str) -> Iterator[Rule]:
    """Multi-latent attention with its norm; rotary pairs are interleaved in both."""
    hidden, heads = s.hidden_size, s.num_attention_heads
    query = heads * (s.qk_head_dim + s.qk_pos_emb_head_dim)
    m, h = f"{megatron}self_attention.", f"{name}self_attn."
    yield weight(f"{megatron}input_layernorm.weight", f"{name}input_layernorm.weight", hidden)
    if s.q_lora_rank is None:
        yield weight(f"{m}linear_q_proj.weight", f"{h}q_proj.weight", query, hidden)
    else:
        rank, up = s.q_lora_rank, f"{m}linear_q_up_proj"
        yield weight(f"{m}linear_q_down_proj.weight", f"{h}q_a_proj.weight", rank, hidden)
        yield weight(f"{up}.layer_norm_weight", f"{h}q_a_layernorm.weight", rank)
        yield weight(f"{up}.weight", f"{h}q_b_proj.weight", query, rank)
    rank, up = s.kv_lora_rank, f"{m}linear_kv_up_proj"
    down, rows = f"{m}linear_kv_down_proj.weight", rank + s.qk_pos_emb_head_dim
    yield weight(down, f"{h}kv_a_proj_with_mqa.weight", rows, hidden)
    yield weight(f"{up}.layer_norm_weight", f"{h}kv_a_layernorm.weight", rank)
    key_value = heads * (s.qk_head_dim + s.v_head_dim)
    yield weight(f"{up}.weight", f"{h}kv_b_proj.weight", key_value, rank)
    values = heads * s.v_head_dim
    yield weight(f"{m}linear_proj.weight", f"{h}o_proj.weight", hidden, values)


def gated(
    megatron: str,
    name: str,
    ffn: int,
    hidden: int,
    projections: Sequence[str] = _LLAMA_PROJECTIONS,
) -> Iterator[Rule]:
    """A gated feed-forward layer: Megatron has gate and up in one tensor.

    Args:
        projections: published names of gate, up and down.
    """
    gate, up, down = (f"{name}{projection}.weight" for projection in projections)
    yield piled(f"{megatron}linear_fc1.weight", (gate, up), ffn, hidden)
    yield weight(f"{megatron}linear_fc2.weight", down, hidden, ffn)


def dense_feed_forward(s: Any, megatron: str, name: str) -> Iterator[Rule]:
    """The feed-forward layer of a layer without experts, with its norm."""
    norm = f"{name}post_attention_layernorm.weight"
    yield weight(f"{megatron}mlp.linear_fc1.layer_norm_weight", norm, s.hidden_size)
    yield from gated(f"{megatron}mlp.", f"{name}mlp.", s.ffn_hidden_size, s.hidden_size)


def dense_decoder(s: Any) -> Iterator[Rule]:
    """All tensors of a model whose layers are grouped-query attention and a dense gated layer."""
    yield from word_tables(s)
    for number in range(s.num_layers):
        megatron, name = f"decoder.layers.{number}.", f"model.layers.{number}."
        yield from grouped_query_attention(s, megatron, name)
        yield from dense_feed_forward(s, megatron, name)
    yield final_norm(s)


def experts(
    s: Any, megatron: str, name: str, projections: Sequence[str] = _LLAMA_PROJECTIONS
) -> Iterator[Rule]:
    """Router and routed experts.

    Args:
        name: prefix of what holds both in the published model, with the dot.
    """
    router = f"{megatron}mlp.router."
    yield weight(f"{router}weight", f"{name}gate.weight", s.num_experts, s.hidden_size)
    if s.moe_router_enable_expert_bias:
        bias = f"{name}gate.e_score_correction_bias"
        yield weight(f"{router}expert_bias", bias, s.num_experts)
    for expert in range(s.num_experts):
        yield from gated(
            f"{megatron}mlp.experts.experts.{expert}.",
            f"{name}experts.{expert}.",
            expert_width(s),
            s.hidden_size,
            projections,
        )


def expert_width(s: Any) -> int:
    """Width of one routed expert."""
    return int(s.moe_ffn_hidden_size or s.ffn_hidden_size)


def common_fields(s: Any) -> Iterator[Field]:
    """What every family's config.json says."""
    yield Field("hidden_act", "silu", "swiglu", "silu")
    yield Field("hidden_size", s.hidden_size, "hidden_size")
    yield Field("intermediate_size", s.ffn_hidden_size, "ffn_hidden_size")
    yield Field("max_position_embeddings", s.max_position_embeddings, "max_position_embeddings")
    yield Field("num_attention_heads", s.num_attention_heads, "num_attention_heads")
    yield Field("num_hidden_layers", s.num_layers, "num_layers")
    yield Field("rms_norm_eps", s.norm_epsilon, "norm_epsilon")
    untied = s.untie_embeddings_and_output_weights
    yield Field("tie_word_embeddings", not untied, "untie_embeddings_and_output_weights", False)
    yield Field("vocab_size", s.vocab_size, "vocab_size")


def grouped_query_fields(s: Any, *, head_dim: bool) -> Iterator[Field]:
    """Heads of grouped-query attention.

    Args:
        head_dim: the family has an entry of its own for the size of a head.
    """
    heads = s.num_attention_heads
    yield Field("num_key_value_heads", query_groups(s), "num_query_groups", heads)
    if head_dim:
        yield Field("head_dim", head_size(s), "kv_channels", s.hidden_size // heads)


def rope_fields(s: Any, default_base: float = 10000.0) -> Iterator[Field]:
    """Rotary frequencies without scaling."""
    yield Field("rope_theta", float(s.rotary_base), "rotary_base", default_base)
    yield Field("rope_scaling.rope_type", "default", "use_rope_scaling", "default")
