"""DeepSeek-V3 (arXiv:2412.19437): transformers' `DeepseekV3ForCausalLM`.

The layers of multi-token prediction follow the others' numbers; transformers leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.families import deepseek
from primus.config.families.mapping import Field, Objection, Rule, wants, weight

MODEL_TYPE = "deepseek_v3"
ARCHITECTURE = "DeepseekV3ForCausalLM"


def objections(s: Any) -> Iterator[Objection]:
    """What in the settings such a model has not."""
    yield from deepseek.objections(s)
    yield from wants(
        s,
        moe_router_enable_expert_bias=True,
        moe_router_score_function="sigmoid",
        untie_embeddings_and_output_weights=True,
    )
    if s.moe_router_num_groups is not None:
        yield from wants(s, moe_router_group_score="top2_sum")


def fields(s: Any) -> Iterator[Field]:
    """Its config.json."""
    yield from deepseek.fields(s)
    yield Field("norm_topk_prob", True, "moe_router_score_function", True)
    yield Field("num_nextn_predict_layers", s.mtp_num_layers or 0, "mtp_num_layers", 0)
    yield Field("scoring_func", "sigmoid", "moe_router_score_function", "sigmoid")
    yield Field("topk_method", "noaux_tc", "moe_router_enable_expert_bias", "noaux_tc")


def rules(s: Any) -> Iterator[Rule]:
    """Its tensors; each layer of multi-token prediction repeats embedding and output layer."""
    further = [f"model.layers.{s.num_layers + n}." for n in range(s.mtp_num_layers or 0)]
    copies = (
        [f"{name}embed_tokens.weight" for name in further],
        [f"{name}shared_head.head.weight" for name in further],
    )
    yield from deepseek.rules(s, copies)
    for number, name in enumerate(further):
        yield from _further_layer(s, f"mtp.layers.{number}.", name)


def _further_layer(s: Any, megatron: str, name: str) -> Iterator[Rule]:
    hidden = s.hidden_size
    for norm in ("enorm", "hnorm"):
        yield weight(f"{megatron}{norm}.weight", f"{name}{norm}.weight", hidden)
    projection = f"{megatron}eh_proj.weight", f"{name}eh_proj.weight"
    yield weight(*projection, hidden, 2 * hidden)
    yield from deepseek.layer(s, f"{megatron}transformer_layer.", name, has_experts=True)
    norm = f"{name}shared_head.norm.weight"
    yield weight(f"{megatron}final_layernorm.weight", norm, hidden)
