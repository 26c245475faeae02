"""Keys that describe one model together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault
from primus.config.layer_pattern import parse_pattern

_LATENT = ("kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")


def latent_attention(s: Any, _: Context) -> Iterator[Fault]:
    """The sizes of multi-latent attention come together, and not without it."""
    if s.multi_latent_attention:
        for key in _LATENT:
            if getattr(s, key) is None:
                yield Fault(key, "multi_latent_attention needs it", "add it")
        if s.num_query_groups not in (None, s.num_attention_heads):
            why = "multi_latent_attention has no query groups"
            yield Fault("num_query_groups", why, "remove the line")
        if s.qk_pos_emb_head_dim is not None and s.qk_pos_emb_head_dim % 2:
            why = "the rotary part of a head is rotated in pairs"
            yield Fault("qk_pos_emb_head_dim", why, f"write {s.qk_pos_emb_head_dim + 1}")
        return
    for key in ("q_lora_rank", *_LATENT):
        if getattr(s, key) is not None:
            why = "needs multi_latent_attention"
            yield Fault(key, why, "remove the line, or write multi_latent_attention: true")
    if s.rope_type == "yarn":
        why = "yarn is part of multi-latent attention, and this model has none"
        yield Fault("rope_type", why, "write rope, or multi_latent_attention: true")


def layer_pattern(s: Any, _: Context) -> Iterator[Fault]:
    """The pattern of layers with experts lists every layer."""
    if isinstance(s.moe_layer_freq, int):
        if s.moe_layer_freq < 1:
            yield Fault("moe_layer_freq", "must be >= 1", "write 1: experts in every layer")
        return
    if s.num_experts is None:
        yield Fault("moe_layer_freq", "needs num_experts", "remove the line")
        return
    listed = len(parse_pattern(s.moe_layer_freq))
    if listed != s.num_layers:
        why = f"lists {listed} layers, and num_layers is {s.num_layers}"
        fix = f"make it {s.num_layers}, such as ([0]*1+[1]*{s.num_layers - 1})"
        yield Fault("moe_layer_freq", why, fix)
