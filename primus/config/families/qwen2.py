"""Qwen2 and Qwen2.5 without sliding windows: transformers' `Qwen2ForCausalLM`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.families import layers
from primus.config.families.mapping import Field, Objection, Rule, wants
from primus.config.weights import head_size

MODEL_TYPE = "qwen2"
ARCHITECTURE = "Qwen2ForCausalLM"


def objections(s: Any) -> Iterator[Objection]:
    """What in the settings such a model has not."""
    yield from wants(
        s,
        add_bias_linear=False,
        add_qkv_bias=True,
        mtp_num_layers=None,
        multi_latent_attention=False,
        num_experts=None,
        qk_layernorm=False,
        swiglu=True,
        use_rope_scaling=False,
    )
    if (head := head_size(s)) * s.num_attention_heads != s.hidden_size:
        yield Objection("kv_channels", head, (s.hidden_size // s.num_attention_heads,))


def fields(s: Any) -> Iterator[Field]:
    """Its config.json."""
    yield from layers.common_fields(s)
    yield from layers.grouped_query_fields(s, head_dim=False)
    yield from layers.rope_fields(s)
    yield Field("use_sliding_window", False, default=False)


def rules(s: Any) -> Iterator[Rule]:
    """Its tensors."""
    yield from layers.dense_decoder(s)
