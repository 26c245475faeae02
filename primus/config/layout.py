"""How ranks form groups and layers form pipeline stages, from settings alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the parallel groups.

    Attributes:
        world: ranks of the whole job.
        data: ranks that hold the same share of the layers outside the experts, for other samples.
        expert_data: ranks that hold the same experts. Context-parallel ranks count among them.
    """

    world: int
    tensor: int
    pipeline: int
    virtual: int
    context: int
    expert: int
    expert_tensor: int

    @property
    def group(self) -> int:
        """Ranks that work on the same samples."""
        return self.tensor * self.pipeline * self.context

    @property
    def expert_group(self) -> int:
        """Ranks that hold all experts and stages once between them."""
        return self.expert_tensor * self.expert * self.pipeline

    @property
    def data(self) -> int:
        """Data-parallel ranks; at least one."""
        return max(1, self.world // self.group)

    @property
    def expert_data(self) -> int:
        """Ranks with the same experts; at least one."""
        return max(1, self.world // self.expert_group)

    def __str__(self) -> str:
        text = f"TP {self.tensor}, PP {self.pipeline}"
        text += f" x {self.virtual} chunks" if self.virtual > 1 else ""
        text += f", CP {self.context}" if self.context > 1 else ""
        text += f", EP {self.expert}" if self.expert > 1 else ""
        text += f", expert TP {self.expert_tensor}" if self.expert_tensor != self.tensor else ""
        return f"{text}, DP {self.data}"


def layout(s: Any) -> Layout:
    """The layout that the settings ask for; it need not be possible (see `checks`)."""
    tensor = s.tensor_model_parallel_size
    return Layout(
        world=s.nodes * s.nproc_per_node,
        tensor=tensor,
        pipeline=s.pipeline_model_parallel_size,
        virtual=s.virtual_pipeline_model_parallel_size or 1,
        context=s.context_parallel_size,
        expert=s.expert_model_parallel_size,
        expert_tensor=s.expert_tensor_parallel_size or tensor,
    )


def least_ranks_per_stage(s: Any) -> int:
    """The fewest ranks of a pipeline stage that hold every dense layer and every expert."""
    dense = s.tensor_model_parallel_size * s.context_parallel_size
    tensor = s.expert_tensor_parallel_size or s.tensor_model_parallel_size
    return math.lcm(dense, tensor * s.expert_model_parallel_size)


def model_parallel_ranks(s: Any) -> int:
    """Ranks that hold one copy of the model."""
    return int(s.pipeline_model_parallel_size * least_ranks_per_stage(s))


def nodes_of_copy(s: Any) -> int:
    """The fewest nodes that share the ranks of one copy of the model evenly."""
    ranks = model_parallel_ranks(s)
    even = (n for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n <= s.nproc_per_node)
    return next(even)


def layers_per_stage(s: Any) -> tuple[int, ...]:
    """Layers of each pipeline stage, those of multi-token prediction not among them.

    Raises:
        ValueError: the layers do not divide as asked.
    """
    stages = s.pipeline_model_parallel_size
    first, last = s.decoder_first_pipeline_num_layers, s.decoder_last_pipeline_num_layers
    rest = stages - (first is not None) - (last is not None)
    layers = s.num_layers - (first or 0) - (last or 0)
    if rest < 0 or layers < rest or (rest == 0 and layers) or (rest and layers % rest):
        raise ValueError(f"{s.num_layers} layers do not divide among {stages} stages")
    middle = [layers // rest] * rest if rest else []
    return (*([] if first is None else [first]), *middle, *([] if last is None else [last]))


def layers_of_stages(s: Any) -> tuple[tuple[int, ...], ...]:
    """The numbers (from 0) of the layers that each pipeline stage holds.

    Chunks of the interleaved schedule take turns: the first chunk of every stage, then the
    second (Narayanan et al., arXiv:2104.04473).

    Raises:
        ValueError: as `layers_per_stage`, or a stage does not divide among its chunks.
    """
    sizes, chunks = layers_per_stage(s), s.virtual_pipeline_model_parallel_size or 1
    if any(size % chunks for size in sizes):
        raise ValueError(f"stages of {sizes} layers do not divide among {chunks} chunks")
    found: list[list[int]] = [[] for _ in sizes]
    layer = 0
    for _ in range(chunks):
        for stage, size in enumerate(sizes):
            found[stage] += range(layer, layer + size // chunks)
            layer += size // chunks
    return tuple(tuple(stage) for stage in found)
