"""State of a sharded optimizer for a checkpoint: each rank's own pieces, nothing exchanged.

Megatron-core's own way to the same format gathers the whole state on every data-parallel rank: six
copies of it in host memory, most of the time of a save. Here the flat range that a rank holds of a
parameter becomes a few boxes of the parameter's tensor, which refer to the optimizer's memory. So
does a load, which reads into these boxes, whatever the layout and whoever saved.
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


def sharded_state(
    optimizer: Any, models: dict[str, Any], metadata: dict[str, Any], *, is_loading: bool = False
) -> Any:
    """What `optimizer.sharded_state_dict` gives, in pieces where that is possible.

    Args:
        models: sharded states of the model's chunks. metadata: as Megatron-core takes it.
        is_loading: what is loaded is `settle`d before the optimizer takes it.
    """
    if isinstance(optimizer, ChainedOptimizer) and len(optimizer.chained_optimizers) > 1:
        optimizer._synchronize_steps()
        states = {}
        for number, part in enumerate(optimizer.chained_optimizers):
            states[number] = sharded_state(part, models, metadata, is_loading=is_loading)
            add_prefix_for_sharding(states[number], f"chained_{number}.")
        return states
    if isinstance(optimizer, ChainedOptimizer):
        (part,) = optimizer.chained_optimizers
        return sharded_state(part, models, metadata, is_loading=is_loading)
    if isinstance(optimizer, DistributedOptimizer):
        try:
            pieces = _param_state(optimizer, models, is_loading)
        except _NotInPieces:
            return optimizer.sharded_state_dict(models, is_loading, metadata=metadata)
        sharding = {"param_state_sharding_type": "fully_reshardable"}
        return optimizer.state_dict() | {"param_state": pieces} | sharding
    return optimizer.sharded_state_dict(models, is_loading, metadata=metadata)


def settle(part: DistributedOptimizer, loaded: dict[str, Any]) -> None:
    """Take out of a loaded state what is already in its place; the model must have been loaded.

    Args:
        loaded: state of `part`, changed in place; one that is not in pieces is left as it is.
    """
    values = [key for tensors in loaded.get("param_state", {}).values() for key in tensors.values()]
    if not all(isinstance(value, list) for value in values):
        return
    state = loaded.pop("param_state", {})
    for number, parameter, start, held in _held(part):
        master, found = held["param"].detach(), state[number].get("param")
        if found is None:
            # The checkpoint has no master weights: the model's own are as good.
            master.copy_(parameter.detach().flatten()[start : start + master.numel()])
        elif _shares_memory(master, parameter):
            torch.cat([piece.flatten() for piece in found], out=master)


def _held(optimizer: Any) -> Iterator[tuple[int, Tensor, int, dict[str, Tensor]]]:
    """Parameters of which this rank holds a part, by number in the order of Megatron-core.

    Yields:
        number, parameter, where the part starts in the flattened parameter, its states.
    """
    number = 0
    for buffer, by_type in zip(optimizer.buffers, optimizer.gbuf_ranges, strict=True):
        (buckets,) = by_type.values()
        ranges = ChainMap(*(bucket["param_map"] for bucket in buckets))
        for parameter in buffer.param_index_map:
            if parameter in ranges:
                states = optimizer._get_main_param_and_optimizer_states(parameter)
                yield number, parameter, ranges[parameter]["param"].start, states
            number += 1


def _param_state(
    optimizer: Any, models: dict[str, Any], is_loading: bool
) -> dict[int, dict[str, list[Any]]]:
    """Pieces by parameter and by what they hold."""
    if is_loading:
        config = optimizer.config
        if config.use_precision_aware_optimizer or config.optimizer_cpu_offload:
            # What they give are copies.
            raise _NotInPieces
        # Makes the moments where there are none yet.
        optimizer.load_state_dict(optimizer.state_dict())
    sharded, _ = extract_sharded_tensors_and_factories(models)
    described = {value.data: value for value in nested_values(sharded)}
    rank = optimizer.data_parallel_group.rank()
    found: dict[int, dict[str, list[Any]]] = {}
    for number, parameter, start, states in _held(optimizer):
        states = {key: states[key].detach() for key in _KEYS}
        if is_loading and _shares_memory(states["param"], parameter):
            # The model is read into it at the same time, perhaps from another precision.
            states["param"] = torch.empty_like(states["param"])
        found[number] = {
            key: _pieces(described[parameter], key, state, start, rank)
            for key, state in states.items()
        }
    return found


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


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
