"""Layers of experts in the local spec (GShard, arXiv:2006.16668; DeepSeekMoE, arXiv:2401.06066).

Routing, losses and dispatch between ranks are upstream's; what is multiplied goes through our
GEMMs. Parameters and checkpoints are those of upstream's `SequentialMLP`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from primus.trainer.kernels import scaled_swiglu
from primus.trainer.linear import ColumnParallelLinear, RowParallelLinear, grouped_linear
from primus.trainer.mlp import SwiGLUMLP, feed_forward_spec
from primus.trainer.routing import Router


class Experts(SequentialMLP):
    """This rank's experts, one GEMM each and one activation for all of them."""

    @property
    def recompute_activation(self) -> bool:
        """Whether backward computes the activation again."""
        config = self.config
        return config.recompute_granularity == "selective" and "moe_act" in config.recompute_modules

    def forward(
        self,
        permuted_local_hidden_states: Tensor,
        tokens_per_expert: Any,
        permuted_probs: Tensor,
    ) -> tuple[Tensor, None]:
        """(tokens, hidden) → (tokens, hidden), each row scaled by its weight.

        Args:
            permuted_local_hidden_states: rows sorted by expert.
            tokens_per_expert: rows of each expert, a tensor or array on the CPU.
            permuted_probs: (tokens,).
        """
        counts = tokens_per_expert.tolist()
        first = [expert.linear_fc1.weight for expert in self.local_experts]
        second = [expert.linear_fc2.weight for expert in self.local_experts]
        gemm = self.config.gemm
        wide = grouped_linear(permuted_local_hidden_states, first, counts, gemm)
        if not self.recompute_activation:
            inner = scaled_swiglu(wide, permuted_probs)
            return grouped_linear(inner, second, counts, gemm), None
        activation = CheckpointWithoutOutput(fp8=None)
        inner = activation.checkpoint(scaled_swiglu, wide, permuted_probs)
        out = grouped_linear(inner, second, counts, gemm)
        activation.discard_output_and_register_recompute(out)
        return out, None


class SharedExperts(SharedExpertMLP, SwiGLUMLP):
    """The experts that see every token."""


class Dispatcher(MoEAlltoAllTokenDispatcher):
    """Upstream's dispatcher, which one rank asks to sort nothing again.

    What a rank has sorted by expert for itself alone is in order; upstream cuts it up and joins it
    in the same order, forwards and backwards.
    """

    def dispatch_postprocess(
        self, global_input_tokens: Tensor, global_probs: Tensor
    ) -> tuple[Tensor, Any, Tensor]:
        """Sort what all ranks sent by expert."""
        with self._as_it_is():
            rows, counts, weights = super().dispatch_postprocess(global_input_tokens, global_probs)
        return rows, counts, weights

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """Bring rows back into the order in which the ranks sent them."""
        with self._as_it_is():
            rows: Tensor = super().combine_preprocess(hidden_states)
        return rows

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        held: int = self.num_local_experts  # type: ignore[has-type]
        if self.tp_size * self.ep_size == 1:
            self.num_local_experts = 1
        try:
            yield
        finally:
            self.num_local_experts = held


class BalancedDispatcher(MoEAlltoAllTokenDispatcher):
    """Dispatch of `balanced_routing`: every count is known without looking at a tensor.

    Rows are reordered by one index each, where upstream cuts and joins one piece per expert and
    rank: a trace of fake tensors costs what it calls.
    """

    def preprocess(self, routing_map: Tensor) -> Any:
        """Counts per expert and rank, as numpy arrays in the places of upstream's tensors."""
        slots, experts = routing_map.shape[0] * self.config.moe_router_topk, self.num_experts
        per_expert = slots // experts + (np.arange(experts) < slots % experts)
        self.num_out_tokens = slots
        local = per_expert.reshape(self.ep_size, -1)
        own = local[self.ep_group.rank()]
        if self.ep_size > 1 or self.tp_size > 1:
            self.input_splits = local.sum(1)
            self.output_splits = np.full(self.ep_size, own.sum())
            self.output_splits_tp = np.full(self.tp_size, own.sum() * self.ep_size)
        ranks = self.tp_size * self.ep_size
        expert_of_row = np.tile(np.repeat(np.arange(len(own)), own), ranks)
        self._by_expert = np.argsort(expert_of_row, kind="stable")
        return own * ranks

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sort this rank's tokens by expert."""
        self.hidden_shape, self.probs, self.routing_map = hidden_states.shape, probs, routing_map
        rows = hidden_states.view(-1, self.hidden_shape[-1])
        self.hidden_shape_before_permute = rows.shape
        self.tokens_per_expert = self.preprocess(routing_map)
        slots = np.arange(self.num_out_tokens)
        order = slots[np.argsort(slots % self.num_experts, kind="stable")]
        tokens = _index(order // self.config.moe_router_topk, rows)
        self.reversed_local_input_permutation_mapping = tokens
        weights = probs[tokens, _index(order % self.num_experts, rows)]
        return rows.index_select(0, tokens), weights

    def dispatch_postprocess(
        self, global_input_tokens: Tensor, global_probs: Tensor
    ) -> tuple[Tensor, Any, Tensor]:
        """Sort what all ranks sent by expert."""
        rows, weights = global_input_tokens, global_probs
        if self.tp_size > 1:
            splits = self.output_splits_tp.tolist()
            rows, weights = (
                gather_from_sequence_parallel_region(
                    part, group=self.tp_group, output_split_sizes=splits
                )
                for part in (rows, weights)
            )
        order = _index(self._by_expert, rows)
        return rows.index_select(0, order), self.tokens_per_expert, weights.index_select(0, order)

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """Bring rows back into the order in which the ranks sent them."""
        rows = hidden_states.index_select(0, _index(np.argsort(self._by_expert), hidden_states))
        if self.tp_size > 1:
            rows = reduce_scatter_to_sequence_parallel_region(
                rows, group=self.tp_group, input_split_sizes=self.output_splits_tp.tolist()
            )
        return rows


def _index(order: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(order).to(like.device)


class ExpertLayer(MoELayer):
    """Upstream's layer, with one of our dispatchers."""

    def __init__(self, config: Any, submodules: MoESubmodules, **kwargs: Any) -> None:
        groups = kwargs.pop("pg_collection", None) or get_default_pg_collection()
        super().__init__(config, submodules, pg_collection=groups, **kwargs)
        kind = BalancedDispatcher if config.balanced_routing else Dispatcher
        sends_all = config.moe_token_dispatcher_type == "alltoall"  # noqa: S105
        if config.balanced_routing or sends_all:
            self.token_dispatcher = kind(
                self.num_local_experts,
                self.local_expert_indices,
                config=config,
                pg_collection=groups,
            )


def expert_layer_spec(config: Any) -> ModuleSpec:
    """The experts of one layer and what decides between them."""
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    gated = config.gated_linear_unit
    return ModuleSpec(
        module=ExpertLayer,
        submodules=MoESubmodules(
            router=Router,
            experts=ModuleSpec(module=Experts if gated else SequentialMLP, submodules=linears),
            shared_experts=feed_forward_spec(
                ColumnParallelLinear,
                gated=gated,
                gated_module=SharedExperts,
                module=SharedExpertMLP,
            ),
        ),
    )
