"""Megatron's parameters of a dense Llama as transformers' `LlamaForCausalLM` names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from primus.errors import UserError

_LAYER = "decoder.layers."
# transformers' defaults of Llama 3.1, which are also Megatron-core's constants.
_ROPE_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Target:
    """One Hugging Face parameter made from a Megatron parameter.

    Attributes:
        source: key in the checkpoint; layers are stacked in its first dimension.
        layer: index into the stack, None for a parameter outside the layers.
        convert: from the (unstacked) Megatron tensor.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    layer: int | None
    convert: Callable[[Tensor], Tensor]


def config(settings: Mapping[str, Any], *, eod_id: int, dtype: str) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: the architecture has no counterpart in `LlamaForCausalLM`.
    """
    for name, supported in (("swiglu", True), ("add_bias_linear", False), ("add_qkv_bias", False)):
        if settings[name] != supported:
            raise UserError(
                f"{name} = {settings[name]}: LlamaForCausalLM has no such layer. "
                f"Fix: {name}: {str(supported).lower()}"
            )
    rope: dict[str, Any] = {"rope_theta": settings["rotary_base"], "rope_type": "default"}
    if settings["use_rope_scaling"]:
        rope |= _ROPE_SCALING | {"factor": settings["rope_scaling_factor"]}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": settings["attention_dropout"],
        "bos_token_id": eod_id,
        "dtype": dtype,
        "eos_token_id": eod_id,
        "head_dim": settings["kv_channels"],
        "hidden_act": "silu",
        "hidden_size": settings["hidden_size"],
        "initializer_range": settings["init_method_std"],
        "intermediate_size": settings["ffn_hidden_size"],
        "max_position_embeddings": settings["max_position_embeddings"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": settings["num_attention_heads"],
        "num_hidden_layers": settings["num_layers"],
        "num_key_value_heads": settings["num_query_groups"],
        "rms_norm_eps": settings["norm_epsilon"],
        "rope_parameters": rope,
        "tie_word_embeddings": not settings["untie_embeddings_and_output_weights"],
        "use_cache": True,
        "vocab_size": settings["vocab_size"],
    }


def targets(settings: Mapping[str, Any]) -> Iterator[Target]:
    """Every parameter of the Hugging Face model, in the order of its layers."""
    hidden, vocabulary = settings["hidden_size"], settings["vocab_size"]
    table = (vocabulary, hidden)

    def unpadded(tensor: Tensor) -> Tensor:
        return tensor[:vocabulary]

    yield Target(
        "model.embed_tokens.weight", table, "embedding.word_embeddings.weight", None, unpadded
    )
    for layer in range(settings["num_layers"]):
        yield from _layer(settings, layer)
    yield Target("model.norm.weight", (hidden,), "decoder.final_layernorm.weight", None, _same)
    if settings["untie_embeddings_and_output_weights"]:
        yield Target("lm_head.weight", table, "output_layer.weight", None, unpadded)


def _layer(settings: Mapping[str, Any], layer: int) -> Iterator[Target]:
    hidden, ffn = settings["hidden_size"], settings["ffn_hidden_size"]
    heads, groups = settings["num_attention_heads"], settings["num_query_groups"]
    head = settings["kv_channels"]
    queries = heads // groups
    prefix = f"model.layers.{layer}."

    def target(
        name: str, shape: tuple[int, ...], source: str, convert: Callable[[Tensor], Tensor]
    ) -> Target:
        return Target(f"{prefix}{name}.weight", shape, _LAYER + source, layer, convert)

    def from_qkv(first: int, count: int) -> Callable[[Tensor], Tensor]:
        # Per group: its queries, one key, one value.
        def take(mixed: Tensor) -> Tensor:
            parts = mixed.view(groups, queries + 2, head, hidden)[:, first : first + count]
            return parts.reshape(groups * count * head, hidden)

        return take

    qkv = "self_attention.linear_qkv"
    yield target("input_layernorm", (hidden,), f"{qkv}.layer_norm_weight", _same)
    yield target("self_attn.q_proj", (heads * head, hidden), f"{qkv}.weight", from_qkv(0, queries))
    yield target("self_attn.k_proj", (groups * head, hidden), f"{qkv}.weight", from_qkv(queries, 1))
    yield target(
        "self_attn.v_proj", (groups * head, hidden), f"{qkv}.weight", from_qkv(queries + 1, 1)
    )
    out = "self_attention.linear_proj.weight"
    yield target("self_attn.o_proj", (hidden, heads * head), out, _same)
    fc1 = "mlp.linear_fc1"
    yield target("post_attention_layernorm", (hidden,), f"{fc1}.layer_norm_weight", _same)
    yield target("mlp.gate_proj", (ffn, hidden), f"{fc1}.weight", lambda both: both[:ffn])
    yield target("mlp.up_proj", (ffn, hidden), f"{fc1}.weight", lambda both: both[ffn:])
    yield target("mlp.down_proj", (hidden, ffn), "mlp.linear_fc2.weight", _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor
