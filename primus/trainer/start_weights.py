"""Start weights into a model, whatever its layout: each rank fills the slices that it holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories
from torch import Tensor

from primus.config.families.mapping import Rule
from primus.errors import TrainingError

Fill = Callable[[Rule, Tensor, tuple[int, ...]], None]

_STACKED_LAYERS = re.compile(r"^(decoder\.layers\.)(?!\d)")
_STACKED_EXPERTS = re.compile(r"(\.experts\.experts\.)(?!\d)")


def load_weights(modules: Iterable[Any], rules: Iterable[Rule], fill: Fill) -> None:
    """Fill every parameter and persistent buffer of this rank's chunks.

    What a rank holds of which tensor is what it would write into a checkpoint.

    Args:
        modules: chunks with a `sharded_state_dict`.
        fill: puts values into a slice of a rule's tensor, given where the slice begins.

    Raises:
        TrainingError: the model has a tensor without a rule, or one that cannot be set in place.
    """
    known = {rule.megatron: rule for rule in rules}
    for module in modules:
        filled = 0
        for shard in _shards(module):
            name = _name(shard)
            rule = known.get(name)
            if rule is None:
                raise TrainingError(f"start weights: the model's tensor {name} has no counterpart")
            fill(rule, shard.data, shard.global_offset[shard.prepend_axis_num :])
            filled += shard.data.numel()
        held = sum(tensor.numel() for tensor in _held(module))
        if filled != held:
            raise TrainingError(f"start weights: {filled} of {held} numbers of a chunk were set")


def _shards(module: Any) -> Iterator[ShardedTensor]:
    """The tensors of a chunk as slices of whole ones; each is a view of what the model holds."""
    # Upstream writes process groups into the dictionary: a new one for every call.
    state = module.sharded_state_dict(metadata={})
    apply_factories(state)
    storages = {tensor.untyped_storage().data_ptr() for tensor in _held(module)}
    for value in nested_values(state):
        if isinstance(value, ShardedTensor):
            if value.data.untyped_storage().data_ptr() not in storages:
                raise TrainingError(f"start weights: {value.key} is a copy of the model's tensor")
            yield value


def _held(module: Any) -> list[Tensor]:
    """Every tensor that the model keeps, each once."""
    state = module.state_dict(keep_vars=True).values()
    tensors = [value for value in state if isinstance(value, torch.Tensor)]
    return list({tensor.data_ptr(): tensor for tensor in tensors}.values())


def _name(shard: ShardedTensor) -> str:
    """The name with the numbers of layer and expert, which are indices where they are stacked."""
    stacked = list(shard.global_offset[: shard.prepend_axis_num])
    name: str = shard.key
    for pattern in (_STACKED_LAYERS, _STACKED_EXPERTS):
        if stacked and pattern.search(name):
            name = pattern.sub(rf"\g<1>{stacked.pop(0)}.", name)
    return name
