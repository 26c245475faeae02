"""Mixture of experts and multi-token prediction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault, divisors

_ONLY_WITH_EXPERTS = (
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_num_groups",
    "moe_router_group_topk",
)


def keys(s: Any, _: Context) -> Iterator[Fault]:
    """Keys of experts come together, and not without experts."""
    if s.num_experts is None:
        for key in _ONLY_WITH_EXPERTS:
            if getattr(s, key) is not None:
                yield Fault(key, "needs num_experts", "remove the line, or write num_experts")
        if s.moe_router_enable_expert_bias:
            yield Fault("moe_router_enable_expert_bias", "needs num_experts", "remove the line")
        return
    if s.moe_ffn_hidden_size is None:
        why = "needs moe_ffn_hidden_size, the width of one expert"
        fix = f"add moe_ffn_hidden_size: {s.ffn_hidden_size}, or that of the model"
        yield Fault("num_experts", why, fix)
    if s.add_bias_linear:
        yield Fault("add_bias_linear", "experts have no biases", "write false")


def routing(s: Any, _: Context) -> Iterator[Fault]:
    """What the router chooses from is there."""
    if s.num_experts is None:
        return
    experts, top = s.num_experts, s.moe_router_topk
    groups, group_top = s.moe_router_num_groups, s.moe_router_group_topk
    if top > experts:
        yield Fault(
            "moe_router_topk", f"is above num_experts {experts}", f"write at most {experts}"
        )
    if (groups is None) != (group_top is None):
        given = "moe_router_num_groups" if group_top is None else "moe_router_group_topk"
        other = "moe_router_group_topk" if group_top is None else "moe_router_num_groups"
        yield Fault(given, f"needs {other}", f"add {other}, or remove the line")
    elif groups is not None and group_top is not None:
        yield from _groups(experts, top, groups, group_top)
    if s.moe_router_enable_expert_bias and s.moe_router_score_function != "sigmoid":
        why = f"balances sigmoid scores, and they are {s.moe_router_score_function}"
        fix = "write moe_router_score_function: sigmoid, or false here"
        yield Fault("moe_router_enable_expert_bias", why, fix)
    if top == 1 and s.moe_router_score_function == "softmax" and not s.moe_router_pre_softmax:
        why = "a softmax over the one expert chosen is always 1, and the router learns nothing"
        yield Fault("moe_router_pre_softmax", why, "write true, or moe_router_topk: 2")
    if s.moe_router_load_balancing_type == "none" and s.moe_aux_loss_coeff > 0:
        why = "has no effect with moe_router_load_balancing_type none"
        fix = "write 0.0, or another moe_router_load_balancing_type"
        yield Fault("moe_aux_loss_coeff", why, fix)


def _groups(experts: int, top: int, groups: int, group_top: int) -> Iterator[Fault]:
    if experts % groups:
        why = f"num_experts {experts} is not a multiple of it"
        yield Fault("moe_router_num_groups", why, f"write one of {divisors(experts)}")
    elif group_top > groups:
        why = f"is above moe_router_num_groups {groups}"
        yield Fault("moe_router_group_topk", why, f"write at most {groups}")
    elif top > group_top * (experts // groups):
        held = group_top * (experts // groups)
        why = f"is above the {held} experts of moe_router_group_topk {group_top} groups"
        yield Fault("moe_router_topk", why, f"write at most {held}")


def parallel(s: Any, _: Context) -> Iterator[Fault]:
    """Experts divide among the ranks that share them."""
    ep, tp = s.expert_model_parallel_size, s.tensor_model_parallel_size
    if s.num_experts is None:
        if ep > 1:
            why = "needs a model with num_experts"
            yield Fault("expert_model_parallel_size", why, "write 1")
        if s.expert_tensor_parallel_size not in (None, tp):
            why = "needs a model with num_experts"
            yield Fault("expert_tensor_parallel_size", why, "remove the line")
        return
    if s.num_experts % ep:
        why = f"num_experts {s.num_experts} is not a multiple of it"
        fix = f"write one of {divisors(s.num_experts)}"
        yield Fault("expert_model_parallel_size", why, fix)
    if tp > 1 and not s.sequence_parallel:
        why = "experts with tensor_model_parallel_size > 1 need it"
        yield Fault("sequence_parallel", why, "write true, or tensor_model_parallel_size: 1")
