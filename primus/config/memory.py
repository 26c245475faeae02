"""Memory of one rank by part: weights, gradients, optimizer, activations, reserve."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from primus.config.activations import activations
from primus.config.layout import Layout, layout
from primus.config.parameters import RankParameters, rank_parameters

GIB = 1 << 30
# Bytes that a process takes besides its tensors: the device's context and the buffers of the
# collectives, on a CPU the libraries' own; and a share of the rest for gaps between tensors.
RESERVE = {"cpu": GIB // 4, "cuda": 2 * GIB, "rocm": 2 * GIB}
GAPS = 0.05


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank of a pipeline stage.

    Attributes:
        reserve: an assumption, not a count: `RESERVE` and `GAPS` of the other parts.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    reserve: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    @property
    def gib(self) -> dict[str, float]:
        """The parts and their sum in GiB."""
        parts = {field.name: getattr(self, field.name) / GIB for field in fields(self)}
        return {**parts, "total": self.total / GIB}


def this_machine_gib() -> float:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def weight_bytes(s: Any) -> int:
    """Bytes of one weight."""
    return 2 if s.bf16 or s.fp16 else 4


def optimizer_bytes(s: Any) -> int:
    """Bytes of optimizer state per parameter: two moments, and a master copy of half weights."""
    return 12 if s.bf16 or s.fp16 else 8


def stages(s: Any) -> tuple[Memory, ...]:
    """Memory of one rank of each pipeline stage.

    Gradients are float32 always. With `use_distributed_optimizer` the optimizer's part is shared
    by the ranks that hold the same weights: data- and context-parallel ranks, or for the routed
    experts the expert-data-parallel ranks (Rajbhandari et al., ZeRO, arXiv:1910.02054, stage 1).

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    share = layout(s)
    return tuple(
        _of_stage(s, share, rank, work.total)
        for rank, work in zip(rank_parameters(s), activations(s), strict=True)
    )


def fullest(s: Any) -> Memory:
    """Memory of one rank of the stage that takes most.

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    return max(stages(s), key=lambda stage: stage.total)


def _of_stage(s: Any, share: Layout, rank: RankParameters, work: float) -> Memory:
    if s.use_torch_fsdp2:
        return _fully_sharded(s, share, rank, work)
    own: float = rank.total
    if s.use_distributed_optimizer:
        own = rank.dense / (share.data * share.context) + rank.expert / share.expert_data
    parts = (rank.total * weight_bytes(s), rank.total * 4, own * optimizer_bytes(s), work)
    return Memory(*parts, reserve=RESERVE[s.platform] + GAPS * sum(parts))


def _fully_sharded(s: Any, share: Layout, rank: RankParameters, work: float) -> Memory:
    """Shares in float32, and what is gathered: the output layer all along, and two units.

    A unit is the embedding or a layer. While one computes, the next is gathered; gradients of
    what is gathered are there in the weights' type, and those of a unit in float32 to be reduced.
    """
    table, output = (rank.by_part.get(part, 0) for part in ("embedding", "output"))
    unit = max(table, (rank.total - table - output) / s.num_layers)
    own, size = rank.total / share.data, weight_bytes(s)
    weights = own * 4 + (output + 2 * unit) * size
    gradients = own * 4 + (output + unit) * size + unit * 4
    parts = (weights, gradients, own * 8, work)
    return Memory(*parts, reserve=RESERVE[s.platform] + GAPS * sum(parts))
