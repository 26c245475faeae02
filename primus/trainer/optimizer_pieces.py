"""State of a sharded optimizer for a checkpoint: each rank's own pieces, nothing exchanged.

Megatron-core's own way to the same format gathers the whole state on every data-parallel rank: six
copies of it in host memory, most of the time of a save. Here the flat range that a rank holds of a
parameter becomes a few boxes of the parameter's tensor, which refer to the optimizer's memory. It
is loaded by Megatron-core as before, at any layout.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import (
    add_prefix_for_sharding,
    extract_sharded_tensors_and_factories,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from torch import Tensor

_KEYS = ("param", "exp_avg", "exp_avg_sq")

# Offset and sizes of a box, and where it starts in the flattened tensor.
Box = tuple[tuple[int, ...], tuple[int, ...], int]


class _NotInPieces(Exception):
    """The state is of another kind; Megatron-core gathers it."""


def sharded_state(optimizer: Any, models: dict[str, Any], metadata: dict[str, Any]) -> Any:
    """What `optimizer.sharded_state_dict` gives for a save, in pieces where that is possible.

    Args:
        models: sharded states of the model's chunks. metadata: as Megatron-core takes it.
    """
    if isinstance(optimizer, ChainedOptimizer) and len(optimizer.chained_optimizers) > 1:
        optimizer._synchronize_steps()
        states = {}
        for number, part in enumerate(optimizer.chained_optimizers):
            states[number] = sharded_state(part, models, metadata)
            add_prefix_for_sharding(states[number], f"chained_{number}.")
        return states
    if isinstance(optimizer, ChainedOptimizer):
        return sharded_state(optimizer.chained_optimizers[0], models, metadata)
    if isinstance(optimizer, DistributedOptimizer):
        try:
            pieces = _param_state(optimizer, models)
        except _NotInPieces:
            return optimizer.sharded_state_dict(models, metadata=metadata)
        sharding = {"param_state_sharding_type": "fully_reshardable"}
        return optimizer.state_dict() | {"param_state": pieces} | sharding
    return optimizer.sharded_state_dict(models, metadata=metadata)


def _param_state(optimizer: Any, models: dict[str, Any]) -> dict[int, dict[str, list[Any]]]:
    """Pieces by parameter, in the order of Megatron-core, and by what they hold."""
    sharded, _ = extract_sharded_tensors_and_factories(models)
    described = {value.data: value for value in nested_values(sharded)}
    rank = optimizer.data_parallel_group.rank()
    found: dict[int, dict[str, list[Any]]] = {}
    number = 0
    for buffer, by_type in zip(optimizer.buffers, optimizer.gbuf_ranges, strict=True):
        (buckets,) = by_type.values()
        ranges = ChainMap(*(bucket["param_map"] for bucket in buckets))
        for parameter in buffer.param_index_map:
            if parameter in ranges:
                held = ranges[parameter]["param"]
                state = optimizer._get_main_param_and_optimizer_states(parameter)
                found[number] = {
                    key: _pieces(described[parameter], key, state[key].detach(), held.start, rank)
                    for key in _KEYS
                }
            number += 1
    return found


def _pieces(
    described: ShardedTensor | ShardedTensorFactory, key: str, state: Tensor, start: int, rank: int
) -> list[ShardedTensor]:
    """The boxes of a parameter's tensor, or of those that it is split into, that `state` covers.

    Args:
        described: the parameter among the model's shards.
        state: flat. start: where it starts in the flattened parameter.
        rank: of this process among those that share the optimizer's state.
    """
    *others, replica = described.replica_id
    if state.dtype != torch.float32 or replica != rank:
        raise _NotInPieces
    name = f"optimizer.state.{key}.{described.key}"
    # Without memory: it tells which part of the parameter a split of it is.
    place = torch.empty(described.data.shape, dtype=torch.float32, device="meta")
    # Ranks that share the state hold different pieces of it, not replicas.
    changes: dict[str, Any] = {"key": name, "data": place, "replica_id": (*others, 0)}
    if isinstance(described, ShardedTensorFactory):
        wholes = list(nested_values(replace(described, **changes).build()))
    else:
        wholes = [replace(described, **changes, dtype=torch.float32)]
    return [piece for whole in wholes for piece in _inside(whole, state.flatten(), start)]


def _inside(whole: ShardedTensor, state: Tensor, start: int) -> Iterator[ShardedTensor]:
    if not whole.data.is_contiguous():
        raise _NotInPieces
    first = whole.data.storage_offset()
    low = max(start, first)
    high = min(start + state.numel(), first + whole.data.numel())
    outer = (1,) * whole.prepend_axis_num
    for offset, sizes, at in boxes(whole.local_shape, low - first, high - first):
        begin = first + at - start
        shape = (*outer, *sizes)
        yield ShardedTensor(
            key=whole.key,
            data=state[begin : begin + math.prod(sizes)].view(shape),
            dtype=state.dtype,
            local_shape=shape,
            global_shape=whole.global_shape,
            global_offset=tuple(
                a + b
                for a, b in zip(whole.global_offset, (*(0,) * len(outer), *offset), strict=True)
            ),
            # No regular grid.
            axis_fragmentations=None,
            replica_id=whole.replica_id,
            allow_shape_mismatch=whole.allow_shape_mismatch,
        )


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """The range [start, stop) of a flattened tensor as boxes of the tensor, in order.

    At most 2 n - 1 for n dimensions: the end of a row, whole rows, the start of another.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,), start
        return
    inner = tuple(shape[1:])
    row = math.prod(inner)
    first, last = -(-start // row), stop // row
    if first > last:
        yield from _of_row(inner, row, last, start, stop)
        return
    yield from _of_row(inner, row, first - 1, start, first * row)
    if first < last:
        yield (first, *(0,) * len(inner)), (last - first, *inner), first * row
    yield from _of_row(inner, row, last, last * row, stop)


def _of_row(inner: Sequence[int], row: int, number: int, start: int, stop: int) -> Iterator[Box]:
    for offset, sizes, at in boxes(inner, start - number * row, stop - number * row):
        yield (number, *offset), (1, *sizes), number * row + at
