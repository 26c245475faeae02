"""Llama 2, 3 and 3.1: transformers' `LlamaForCausalLM`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.families import layers
from primus.config.families.mapping import Field, Objection, Rule, wants

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
# Meta's constants of Llama 3.1, which are also Megatron-core's.
_ROPE_SCALING = (
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 8192),
)


def objections(s: Any) -> Iterator[Objection]:
    """What in the settings such a model has not."""
    yield from wants(
        s,
        add_bias_linear=False,
        add_qkv_bias=False,
        mtp_num_layers=None,
        multi_latent_attention=False,
        num_experts=None,
        qk_layernorm=False,
        swiglu=True,
    )


def fields(s: Any) -> Iterator[Field]:
    """Its config.json."""
    yield from layers.common_fields(s)
    yield from layers.grouped_query_fields(s, head_dim=True)
    yield Field("attention_bias", False, "add_bias_linear", False)
    yield Field("mlp_bias", False, "add_bias_linear", False)
    if not s.use_rope_scaling:
        yield from layers.rope_fields(s)
        return
    yield Field("rope_theta", float(s.rotary_base), "rotary_base", 10000.0)
    yield Field("rope_scaling.rope_type", "llama3", "use_rope_scaling", "default")
    yield Field("rope_scaling.factor", s.rope_scaling_factor, "rope_scaling_factor")
    for name, constant in _ROPE_SCALING:
        yield Field(f"rope_scaling.{name}", constant)


def rules(s: Any) -> Iterator[Rule]:
    """Its tensors."""
    yield from layers.dense_decoder(s)
