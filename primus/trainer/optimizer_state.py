"""Optimizer state of one kind of Megatron's optimizers read by another: sharded, plain, float32.

All of them write the moments of a parameter under its name, in its shape. They differ in the name
of the float32 copy (which a float32 model does not need) and in where the common part stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import (
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
)

from primus.trainer.optimizer_pieces import settle

_MASTERS = ("optimizer.state.param.", "optimizer.state.fp32_param.")
_PLAIN = (FP32Optimizer, Float16OptimizerWithFloat16Params)


def ask_for_saved_names(optimizer: Any, wanted: dict[Any, Any], saved: set[str]) -> None:
    """Ask for master weights by the names that a checkpoint has, or not at all; in place.

    Args:
        wanted: the sharded state of `optimizer`. saved: keys of all tensors of the checkpoint.
    """
    for value in nested_values(wanted):
        if isinstance(value, ShardedTensor | ShardedTensorFactory) and value.key not in saved:
            prefix = next((name for name in _MASTERS if name in value.key), "")
            others = [value.key.replace(prefix, name) for name in _MASTERS if prefix]
            value.key = next((key for key in others if key in saved), value.key)
    for _, state in _parts(optimizer, wanted):
        for tensors in state.get("param_state", {}).values():
            master = tensors["param"]
            if (master[0] if isinstance(master, list) else master).key not in saved:
                del tensors["param"]


def adapt(optimizer: Any, loaded: dict[Any, Any]) -> None:
    """Move the common part of a loaded state to where this kind of optimizer looks, in place.

    Hyperparameters are those of this run; the step count is the loaded one. A float32 model's
    weights, which must have been loaded before, are their own master weights.
    """
    for part, state in _parts(optimizer, loaded):
        sharded = isinstance(part, DistributedOptimizer)
        if sharded:
            settle(part, state)
        if sharded == ("param_state_sharding_type" in state) or not (
            sharded or isinstance(part, _PLAIN)
        ):
            continue
        groups = state.get("optimizer", state)["param_groups"]
        step = max(group.get("step", 0) for group in groups)
        own = part.state_dict()
        own_groups = own.get("optimizer", own)["param_groups"]
        adapted = [group | {"step": step} for group in own_groups]
        if sharded:
            state["optimizer"] = {"param_groups": adapted}
            state["param_state_sharding_type"] = "fully_reshardable"
            weights = (weight for buffer in part.buffers for weight in buffer.param_index_map)
            if "param_state" in state:
                for weight, tensors in zip(weights, state["param_state"].values(), strict=True):
                    tensors.setdefault("param", weight.detach())
        elif isinstance(part, FP32Optimizer):
            state["param_groups"] = adapted
        else:
            state["optimizer"]["param_groups"] = adapted


def _parts(optimizer: Any, loaded: dict[Any, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    if len(parts) == 1:
        yield parts[0], loaded
    else:
        yield from ((part, loaded[number]) for number, part in enumerate(parts))
