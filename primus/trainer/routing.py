"""Which experts a token is sent to, and the router that decides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    apply_random_logits,
    compute_routing_scores_for_aux_loss,
    z_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from primus.trainer.linear import linear

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def limit_to_groups(scores: Tensor, groups: int, group_topk: int, group_score: str) -> Tensor:
    """Scores with -inf for the experts of all groups but the best `group_topk`.

    Args:
        scores: (tokens, experts), neighbours in one group.
        group_score: what ranks a group: "max", its best expert (DeepSeek-V2, arXiv:2405.04434,
            section 2.2.2), or "top2_sum", its two best (DeepSeek-V3, arXiv:2412.19437, 2.1.2).
    """
    members = scores.unflatten(-1, (groups, -1))
    best = 1 if group_score == "max" else min(2, members.shape[-1])
    ranks = members.topk(best, dim=-1).values.sum(-1)
    chosen = ranks.topk(group_topk, dim=-1, sorted=False).indices
    left_out = torch.ones_like(ranks, dtype=torch.bool).scatter_(-1, chosen, False)
    kept: Tensor = members.masked_fill(left_out.unsqueeze(-1), float("-inf"))
    return kept.flatten(-2)


def choose_experts(
    logits: Tensor, config: Any, expert_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The experts of each token and the weights of their outputs.

    A bias moves the choice only; weights come from the scores without it.

    Args:
        logits: (tokens, experts). config: upstream's configuration with `moe_router_group_score`.
        expert_bias: (experts,) float32.

    Returns:
        weights and experts, (tokens, topk), the weights in the type of the logits.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if config.moe_router_score_function == "sigmoid":
        scores = torch.sigmoid(wide)
    else:
        scores = torch.softmax(wide, -1) if config.moe_router_pre_softmax else wide
    experts = _indices(scores.detach(), config, expert_bias)
    weights = scores.gather(-1, experts)
    if config.moe_router_score_function == "sigmoid":
        if config.moe_router_topk > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    elif not config.moe_router_pre_softmax:
        weights = torch.softmax(weights, -1)
    if config.moe_router_topk_scaling_factor:
        weights = weights * config.moe_router_topk_scaling_factor
    return weights.to(logits.dtype), experts


def _indices(scores: Tensor, config: Any, expert_bias: Tensor | None) -> Tensor:
    topk = config.moe_router_topk
    if config.balanced_routing:
        slots = torch.arange(scores.shape[0] * topk, device=scores.device)
        return slots.remainder(scores.shape[1]).view(-1, topk)
    if expert_bias is not None:
        scores = scores + expert_bias
    if config.moe_router_group_topk:
        scores = limit_to_groups(
            scores,
            config.moe_router_num_groups,
            config.moe_router_group_topk,
            config.moe_router_group_score,
        )
    return scores.topk(topk, dim=-1).indices


class Router(TopKRouter):
    """Upstream's router with our GEMM, our choice of experts, and counts that stay exact.

    Attributes:
        load: (experts,) int64, tokens that each got in training since somebody set it to 0.
    """

    load: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        device = torch.cuda.current_device()
        load = torch.zeros(self.config.num_moe_experts, dtype=torch.int64, device=device)
        self.register_buffer("load", load, persistent=False)

    def gating(self, input: Tensor) -> Tensor:
        """(s, b, hidden) → logits (s, b, experts) in `moe_router_dtype`."""
        dtype = _DTYPES.get(self.config.moe_router_dtype, input.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(input.to(dtype), self.weight.to(dtype), bias, self.config.gemm)

    def forward(self, input: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(s, b, hidden) → weights and choice of experts, both (s·b, experts)."""
        if padding_mask is not None:
            raise NotImplementedError("routing with padding")
        logits = self.gating(input)
        if self.config.moe_router_force_load_balancing:
            logits = apply_random_logits(logits)
        s, b, _ = logits.shape
        logits = self.apply_z_loss(logits.view(s * b, -1))
        chosen, experts = choose_experts(logits, self.config, self.expert_bias)
        weights = torch.zeros_like(logits).scatter(-1, experts, chosen)
        choice = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, experts, True)
        if self.training and torch.is_grad_enabled():
            weights = self._balance(weights, logits, s, b)
        if torch.is_grad_enabled():
            counts = choice.sum(0)
            self.load += counts
            if self.local_tokens_per_expert is not None:
                self.local_tokens_per_expert += counts
        return weights, choice

    def _balance(self, weights: Tensor, logits: Tensor, s: int, b: int) -> Tensor:
        if not self.is_aux_loss_enabled():
            return weights
        choice, scores = compute_routing_scores_for_aux_loss(logits, self.topk, self.score_function)
        weights = self._apply_aux_loss(weights, scores, choice)
        balanced: Tensor = self._apply_seq_aux_loss(weights, scores, choice, s, b)
        return balanced

    def attach_and_log_load_balancing_loss(
        self, activation: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Add a loss to the graph without changing `activation`, (tokens, experts).

        Where losses are summed over tokens, gradients are divided by the tokens of all ranks later.
        Upstream multiplies by this rank's tokens, which loses the ranks that share its sequences.
        """
        kwargs["valid_token_count"] = activation.shape[0] * self.tp_cp_group.size()
        attached: Tensor = super().attach_and_log_load_balancing_loss(activation, *args, **kwargs)
        return attached

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Keep logits (tokens, experts) small (ST-MoE, arXiv:2202.08906); see the method above."""
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not (self.training and torch.is_grad_enabled()):
            return logits
        loss = z_loss_func(logits, coefficient / self.tp_cp_group.size())
        if self.config.calculate_per_token_loss:
            loss = loss * logits.shape[0] * self.tp_cp_group.size()
        attached: Tensor = MoEAuxLossAutoScaler.apply(logits, loss)
        return attached

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Float16Module converts every buffer. A bias in half precision loses its small steps, and
        # counts above 256 are not whole in bfloat16.
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        done = super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)
        return done
