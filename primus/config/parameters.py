"""Exact numbers of parameters: of the model, active for one token, and on one rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from primus.config.layer_pattern import expert_layers
from primus.config.layout import Layout, layers_of_stages, layout
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
    for kind, count in Counter(expert_layers(s)).items():
        for weight in layer_weights(s, kind):
            parts[weight.part] += count * weight.size
    for weight in _once(s):
        parts[weight.part] += weight.size
    ahead = (s.mtp_num_layers or 0) * sum(weight.size for weight in prediction_weights(s))
    idle = 0
    if s.num_experts is not None:
        idle = parts["experts"] // s.num_experts * (s.num_experts - s.moe_router_topk)
    return Parameters(dict(parts), ahead, sum(parts.values()) - idle)


def _once(s: Any) -> Iterator[Weight]:
    yield vocabulary_table(s, "embedding", padded=False)
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
    pattern, share = expert_layers(s), layout(s)
    layers = {kind: _on_rank(share, layer_weights(s, kind)) for kind in set(pattern)}
    ahead = _on_rank(share, prediction_weights(s)) if s.mtp_num_layers else Counter()
    found = []
    for stage, held in enumerate(layers_of_stages(s)):
        parts = _on_rank(share, _besides_layers(s, stage))
        expert = 0
        if ahead and stage == share.pipeline - 1:
            parts["mtp"] = s.mtp_num_layers * sum(ahead.values())
            expert = s.mtp_num_layers * ahead["experts"]
        for kind, count in Counter(pattern[layer] for layer in held).items():
            for part, size in layers[kind].items():
                parts[part] += count * size
        found.append(RankParameters(dict(parts), parts["experts"] + expert))
    return tuple(found)


def _on_rank(share: Layout, weights: Iterable[Weight]) -> Counter[str]:
    """What one rank trains of these weights, by part."""
    divisors = {"tensor": share.tensor, "expert": share.expert * share.expert_tensor, "copied": 1}
    parts: Counter[str] = Counter()
    for weight in weights:
        if weight.kind != "buffer":
            parts[weight.part] += weight.size // divisors[weight.split]
    return parts


def _besides_layers(s: Any, stage: int) -> Iterator[Weight]:
    """Tables and the final norm; the last stage copies the tables that it shares with the first."""
    first, last = stage == 0, stage == s.pipeline_model_parallel_size - 1
    predicts = bool(s.mtp_num_layers)
    if first or (last and predicts):
        yield vocabulary_table(s, "embedding", padded=True)
    if not last:
        return
    yield final_norm(s)
    if s.untie_embeddings_and_output_weights or not (first or predicts):
        yield vocabulary_table(s, "output", padded=True)
