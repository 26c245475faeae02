"""Memory of one rank: weights, gradients and optimizer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from primus.config.layout import Layout, layout
from primus.config.parameters import RankParameters, rank_parameters

GIB = 1 << 30


@dataclass(frozen=True)
class State:
    """Bytes that a rank keeps from one iteration to the next."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer


def this_machine_gib() -> float:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def weight_bytes(s: Any) -> int:
    """Bytes of one weight, and of one activation."""
    return 2 if s.bf16 or s.fp16 else 4


def optimizer_bytes(s: Any) -> int:
    """Bytes of optimizer state per parameter: two moments, and a master copy of half weights."""
    return 12 if s.bf16 or s.fp16 else 8


def states(s: Any) -> tuple[State, ...]:
    """What one rank of each pipeline stage keeps.

    Gradients are float32 always. With `use_distributed_optimizer` the optimizer's part is shared
    by the ranks that hold the same weights: data- and context-parallel ranks, or for the routed
    experts the expert-data-parallel ranks (Rajbhandari et al., ZeRO, arXiv:1910.02054, stage 1).

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    share = layout(s)
    return tuple(_state(s, share, rank) for rank in rank_parameters(s))


def _state(s: Any, share: Layout, rank: RankParameters) -> State:
    own: float = rank.total
    if s.use_distributed_optimizer:
        own = rank.dense / (share.data * share.context) + rank.expert / share.expert_data
    return State(
        weights=rank.total * weight_bytes(s),
        gradients=rank.total * 4,
        optimizer=own * optimizer_bytes(s),
    )


def least_gib_per_rank(s: Any) -> float:
    """GiB of weights, gradients and optimizer on the fullest stage, without any activation.

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    return max(state.total for state in states(s)) / GIB
