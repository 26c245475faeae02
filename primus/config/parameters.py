"""Exact numbers of parameters: of the model, active for one token, and on one rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primus.config.layer_pattern import expert_layers
from primus.config.layout import layers_of_stages, layout
from primus.config.weights import (
    Weight,
    final_norm,
    layer_weights,
    prediction_weights,
    vocabulary_table,
)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a whole model.

    Attributes:
        by_part: without multi-token prediction and without padding of the vocabulary.
        multi_token_prediction: what its layers add; the embedding and the output are shared.
        total: sum of the parts, as published.
        active: those that one token meets: of the routed experts only the chosen ones.
    """

    by_part: Mapping[str, int]
    multi_token_prediction: int
    active: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.by_part.values())


def parameters(s: Any) -> Parameters:
    """Count the parameters of the model that the settings describe.

    Raises:
        ValueError: `moe_layer_freq` does not fit num_layers.
    """
    parts: Counter[str] = Counter()
    for weight in model_weights(s):
        parts[weight.part] += weight.size
    ahead = (s.mtp_num_layers or 0) * sum(weight.size for weight in prediction_weights(s))
    idle = 0
    if parts["experts"]:
        idle = parts["experts"] // s.num_experts * (s.num_experts - s.moe_router_topk)
    return Parameters(dict(parts), ahead, sum(parts.values()) - idle)


def model_weights(s: Any) -> Iterator[Weight]:
    """Every weight as published: no multi-token prediction, no padding."""
    yield vocabulary_table(s, "embedding", padded=False)
    for with_experts in expert_layers(s):
        yield from layer_weights(s, with_experts)
    yield final_norm(s)
    if s.untie_embeddings_and_output_weights:
        yield vocabulary_table(s, "output", padded=False)


@dataclass(frozen=True)
class RankParameters:
    """Trained parameters on one rank of a pipeline stage, padding included.

    Attributes:
        by_part: all of them by part; those of multi-token prediction under `mtp`.
        expert: those among them that the expert-data-parallel ranks share (routed experts).
    """

    by_part: Mapping[str, int]
    expert: int

    @property
    def total(self) -> int:
        """All parameters of the rank."""
        return sum(self.by_part.values())

    @property
    def dense(self) -> int:
        """All but the routed experts."""
        return self.total - self.expert


def rank_parameters(s: Any) -> tuple[RankParameters, ...]:
    """Parameters on one rank of each pipeline stage.

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    stages = layers_of_stages(s)
    return tuple(_on_stage(s, number, held) for number, held in enumerate(stages))


def _on_stage(s: Any, stage: int, layers: tuple[int, ...]) -> RankParameters:
    share = layout(s)
    divisors = {"tensor": share.tensor, "expert": share.expert * share.expert_tensor, "copied": 1}
    parts: Counter[str] = Counter()
    expert = 0
    for name, weight in _held(s, stage, layers):
        if weight.kind == "buffer":
            continue
        size = weight.size // divisors[weight.split]
        parts[name] += size
        expert += size if weight.split == "expert" else 0
    return RankParameters(dict(parts), expert)


def _held(s: Any, stage: int, layers: tuple[int, ...]) -> Iterator[tuple[str, Weight]]:
    """What a stage holds; the last one copies tables that it shares with the first."""
    first, last = stage == 0, stage == s.pipeline_model_parallel_size - 1
    pattern, predicts = expert_layers(s), bool(s.mtp_num_layers)
    if first or (last and predicts):
        yield "embedding", vocabulary_table(s, "embedding", padded=True)
    for layer in layers:
        for weight in layer_weights(s, pattern[layer]):
            yield weight.part, weight
    if not last:
        return
    yield "norms", final_norm(s)
    if s.untie_embeddings_and_output_weights or not (first or predicts):
        yield "output", vocabulary_table(s, "output", padded=True)
    for _ in range(s.mtp_num_layers or 0):
        for weight in prediction_weights(s):
            yield "mtp", weight
