"""DeepSeek-V2 and V2-Lite (arXiv:2405.04434): transformers' `DeepseekV2ForCausalLM`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.families import deepseek
from primus.config.families.mapping import Field, Objection, Rule, wants

MODEL_TYPE = "deepseek_v2"
ARCHITECTURE = "DeepseekV2ForCausalLM"


def objections(s: Any) -> Iterator[Objection]:
    """What in the settings such a model has not."""
    yield from deepseek.objections(s)
    yield from wants(
        s,
        moe_router_enable_expert_bias=False,
        moe_router_pre_softmax=True,
        moe_router_score_function="softmax",
        mtp_num_layers=None,
    )
    if s.moe_router_num_groups is not None:
        yield from wants(s, moe_router_group_score="max")


def fields(s: Any) -> Iterator[Field]:
    """Its config.json."""
    yield from deepseek.fields(s)
    method = "greedy" if s.moe_router_num_groups is None else "group_limited_greedy"
    yield Field("norm_topk_prob", False, "moe_router_pre_softmax", False)
    yield Field("scoring_func", "softmax", "moe_router_score_function", "softmax")
    yield Field("topk_method", method, "moe_router_num_groups", "greedy")


def rules(s: Any) -> Iterator[Rule]:
    """Its tensors."""
    return deepseek.rules(s)
