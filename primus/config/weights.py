"""Every weight of a model, by layer: how large, of which part, and how ranks share it.

The one place that knows the architecture by numbers: parameters, memory and FLOPs come from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from primus.config.layer_pattern import expert_layers

Part = Literal[
    "embedding", "output", "attention", "dense_ffn", "experts", "shared_experts", "router", "norms"
]
Kind = Literal["matrix", "vector", "table", "buffer"]
Split = Literal["tensor", "expert", "copied"]


class Weight(NamedTuple):
    """One weight, or several alike.

    Attributes:
        size: elements in the whole model.
        split: over tensor-parallel ranks, over the ranks that share the experts, or not at all.
        kind: a matrix is multiplied with every token; a table is looked up; a buffer counts as a
            parameter where models are published, but no gradient reaches it.
    """

    part: Part
    size: int
    split: Split = "tensor"
    kind: Kind = "matrix"


def head_size(s: Any) -> int:
    """Size of one attention head without latent attention."""
    return int(s.kv_channels or s.hidden_size // s.num_attention_heads)


def query_groups(s: Any) -> int:
    """Key/value heads of grouped-query attention."""
    return int(s.num_query_groups or s.num_attention_heads)


def layer_weights(s: Any, with_experts: bool) -> Iterator[Weight]:
    """The weights of one transformer layer."""
    yield from (latent_attention if s.multi_latent_attention else grouped_attention)(s)
    yield Weight("norms", 2 * s.hidden_size, "copied", "vector")
    if not with_experts:
        yield from _feed_forward("dense_ffn", s, s.ffn_hidden_size)
        return
    yield Weight("router", s.hidden_size * s.num_experts, "copied")
    if s.moe_router_enable_expert_bias:
        yield Weight("router", s.num_experts, "copied", "buffer")
    wide = _branches(s) + 1
    expert = wide * s.hidden_size * s.moe_ffn_hidden_size
    yield Weight("experts", s.num_experts * expert, "expert")
    if s.moe_shared_expert_intermediate_size:
        yield from _feed_forward("shared_experts", s, s.moe_shared_expert_intermediate_size)


def grouped_attention(s: Any) -> Iterator[Weight]:
    """Query, key, value and output projection."""
    head, groups = head_size(s), query_groups(s)
    query, key_value = s.num_attention_heads * head, 2 * groups * head
    yield Weight("attention", s.hidden_size * (query + key_value))
    yield Weight("attention", query * s.hidden_size)
    if s.add_bias_linear or s.add_qkv_bias:
        yield Weight("attention", query + key_value, kind="vector")
    if s.add_bias_linear:
        yield Weight("attention", s.hidden_size, "copied", "vector")
    if s.qk_layernorm:
        yield Weight("norms", 2 * head, "copied", "vector")


def latent_attention(s: Any) -> Iterator[Weight]:
    """Low-rank queries, keys and values (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    The projections down to the ranks are whole on every tensor-parallel rank.
    """
    heads = s.num_attention_heads
    query = heads * (s.qk_head_dim + s.qk_pos_emb_head_dim)
    if s.q_lora_rank is None:
        yield Weight("attention", s.hidden_size * query)
    else:
        yield Weight("attention", s.hidden_size * s.q_lora_rank, "copied")
        yield Weight("attention", s.q_lora_rank * query)
    yield Weight("attention", s.hidden_size * (s.kv_lora_rank + s.qk_pos_emb_head_dim), "copied")
    yield Weight("attention", s.kv_lora_rank * heads * (s.qk_head_dim + s.v_head_dim))
    yield Weight("attention", heads * s.v_head_dim * s.hidden_size)
    if s.add_bias_linear:
        yield Weight("attention", s.hidden_size, "copied", "vector")
    if s.qk_layernorm:
        yield Weight("norms", s.kv_lora_rank + (s.q_lora_rank or 0), "copied", "vector")


def prediction_weights(s: Any) -> Iterator[Weight]:
    """One layer of multi-token prediction: two norms, a projection, a layer like the last, a norm.

    It shares the embedding and the output layer (DeepSeek-V3, arXiv:2412.19437, section 2.2).
    """
    yield Weight("norms", 3 * s.hidden_size, "copied", "vector")
    yield Weight("attention", 2 * s.hidden_size * s.hidden_size)
    yield from layer_weights(s, expert_layers(s)[-1])


def vocabulary_table(s: Any, part: Literal["embedding", "output"], *, padded: bool) -> Weight:
    """The embedding, or the output layer; `padded`: with the rows that Megatron adds."""
    rows = s.vocab_size
    if padded:
        multiple = s.make_vocab_size_divisible_by * s.tensor_model_parallel_size
        rows = -(-rows // multiple) * multiple
    return Weight(part, rows * s.hidden_size, kind="table" if part == "embedding" else "matrix")


def final_norm(s: Any) -> Weight:
    """The norm before the output layer."""
    return Weight("norms", s.hidden_size, "copied", "vector")


def _branches(s: Any) -> int:
    return 2 if s.swiglu else 1


def _feed_forward(part: Part, s: Any, width: int) -> Iterator[Weight]:
    yield Weight(part, (_branches(s) + 1) * s.hidden_size * width)
    if s.add_bias_linear:
        yield Weight(part, _branches(s) * width, kind="vector")
        yield Weight(part, s.hidden_size, "copied", "vector")
