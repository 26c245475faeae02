"""Fully sharded data parallelism: torch's FSDP2 around Megatron's model.

Each rank keeps a share of every weight, its gradient and its optimizer state, all in float32; the
weights of a layer are gathered, in the type of the activations, just before they are needed.
Upstream's TorchFullyShardedDataParallel does the same with weights kept in bfloat16: gradients of
many micro-batches then add up in bfloat16, it does not scale gradients by the tokens, its
checkpoints hold the rows of gated layers in another order at every number of ranks, and in 0.16.1
its `finish_grad_sync` does not fit upstream's schedules.
Zhao et al., PyTorch FSDP, arXiv:2304.11277.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.data_parallel_base import _BaseDataParallel
from megatron.core.models.common.embeddings.language_model_embedding import (
    LanguageModelEmbedding,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from primus.config.frozen import StageSettings
from primus.trainer.initialize import draw_weights

logger = logging.getLogger(__name__)

_ROWS = 0
_QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"


@contextmanager
def without_memory(config: Any, *, transformer_engine: bool) -> Iterator[None]:
    """Build a model whose weights have shapes only.

    Args:
        config: upstream's; transformer-engine's layers look there for the device.
    """
    config.init_model_with_meta_device = True
    # Upstream's own layers then name no device, and follow the context.
    config.use_cpu_initialization = not transformer_engine
    with torch.device("meta"):
        yield


class FullyShardedDataParallel(_BaseDataParallel):
    """A model chunk whose weights are spread over the data-parallel ranks; weights are undefined.

    Attributes:
        module: the chunk, which must have been built by `without_memory`.
        shards: this rank's share of its weights.
    """

    def __init__(self, config: Any, module: nn.Module) -> None:
        super().__init__(config=config, module=module)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        device = torch.device(torch.cuda.current_device())
        _say_if_gathering_waits(device)
        marks = {name: dict(vars(p)) for name, p in module.named_parameters()}
        # The share that the optimizer updates; `param_dtype` is what the layers compute in.
        module.float()
        options: dict[str, Any] = {
            "mesh": DeviceMesh.from_group(group, device.type),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=config.params_dtype,
                reduce_dtype=torch.float32,
                # Rotary angles are float32 and must stay so.
                cast_forward_inputs=False,
            ),
        }
        _shard(module, config, options)
        # With a loss per token `scale_gradients` divides by the tokens of all ranks.
        divisor = 1.0 if config.calculate_per_token_loss else float(group.size())
        for part in module.modules():
            if isinstance(part, FSDPModule):
                # gloo has no collective that averages.
                part.set_force_sum_reduction_for_comms(True)
                part.set_gradient_divide_factor(divisor)
        for name, parameter in module.named_parameters():
            vars(parameter).update(marks[name])
        _give_memory(module, device)
        self.shards = Shards(config, module)

    def zero_grad_buffer(self) -> None:
        """Forget the gradients of the iteration before."""
        for parameter, own in self.shards.pairs():
            parameter.grad = own.main_grad = None

    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """Give the optimizer its share of each gradient; all are reduced by now, layer by layer."""
        for parameter, own in self.shards.pairs():
            own.main_grad = None if parameter.grad is None else _local(parameter.grad)

    @torch.no_grad()
    def scale_gradients(self, scaling_factor: Any) -> None:
        """Multiply every gradient, as Megatron's `finalize_model_grads` asks."""
        for _, own in self.shards.pairs():
            if own.main_grad is not None:
                own.main_grad.mul_(scaling_factor)


def _say_if_gathering_waits(device: torch.device) -> None:
    # Other layouts want one queue; upstream's arguments refuse it with FSDP2.
    if device.type != "cpu" and os.environ.get(_QUEUES) == "1":
        logger.warning(
            "%s = 1: with use_torch_fsdp2 gathering does not overlap with computing. "
            'Fix: env: {%s: "8"}',
            _QUEUES,
            _QUEUES,
        )


def _shard(module: nn.Module, config: Any, options: dict[str, Any]) -> None:
    """Make units of the embedding, each layer, and the rest: final norm and output layer.

    As upstream, backward prefetch is fixed where layers are recomputed: recomputation would
    disturb the order that torch records.
    """
    model: Any = module
    while not hasattr(model, "decoder"):
        model = model.module
    before: Any = None
    for part in model.modules():
        if isinstance(part, TransformerLayer | LanguageModelEmbedding):
            fully_shard(part, **options)
            if config.recompute_granularity is not None:
                part.set_modules_to_backward_prefetch([before] if before else [])
            before = part
    fully_shard(model, **options)


def _give_memory(module: nn.Module, device: torch.device) -> None:
    """Allocate the weights; what is no weight and has its values already keeps them."""
    kept = {
        (part, name): value
        for part in module.modules()
        for name, value in part.named_buffers(recurse=False)
        if not value.is_meta
    }
    module.to_empty(device=device)
    for (part, name), value in kept.items():
        setattr(part, name, value.to(device))


def _local(tensor: Tensor) -> Tensor:
    """This rank's rows of a spread tensor; a view."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


class Shards:
    """This rank's rows of a chunk's weights, as plain tensors, under the chunk's names.

    Stands in for the chunk where tensors are read, set or updated: checkpoints, initial and start
    weights, the optimizer. With torch 2.13 upstream cannot tell which parameter of an optimizer is
    which of a model where both are DTensors.
    """

    def __init__(self, config: Any, module: nn.Module) -> None:
        self.config = config
        # Upstream's optimizers look here for what they need not do.
        self.ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=False)
        self._module = module
        self._own: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters():
            self._own[name] = nn.Parameter(_local(parameter.detach()))
            vars(self._own[name]).update(vars(parameter))

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Every parameter of the model, and this rank's rows of it: a view."""
        for name, parameter in self._module.named_parameters():
            yield parameter, self._own[name]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight."""
        yield from self._own.items()

    def state_dict(self, **_: Any) -> dict[str, Any]:
        """Every weight and persistent buffer."""
        return self._module.state_dict(keep_vars=True) | self._own

    def sharded_state_dict(self, *, metadata: dict[str, Any] | None) -> dict[str, Any]:
        """What this rank holds of which tensor, as Megatron's checkpoints have it."""
        inner: Any = self._module
        state: dict[str, Any] = inner.sharded_state_dict(metadata=metadata)
        own = {tensor.data_ptr(): tensor for tensor in self._own.values()}
        return {name: _canonical(value, own) for name, value in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Set every weight from this rank's rows.

        Raises:
            RuntimeError: names are missing or too many.
        """
        own = {n: value for n, value in self.state_dict().items() if isinstance(value, Tensor)}
        given = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if strict and own.keys() != given.keys():
            raise RuntimeError(f"other tensors: {sorted(own.keys() ^ given.keys())}")
        for name, value in given.items():
            own[name].copy_(value)


def _canonical(value: Any, own: Mapping[int, Tensor]) -> Any:
    """A shard with our plain tensor in it.

    Upstream splits gated layers in two per rank; here a rank holds consecutive rows of both.
    """
    if isinstance(value, ShardedTensor):
        return replace(value, data=own.get(value.data.data_ptr(), value.data))
    if not isinstance(value, ShardedTensorFactory):
        return value
    part = value.build()[0]
    prepended = part.prepend_axis_num
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return ShardedTensor.from_rank_offsets(
        value.key,
        own[value.data.data_ptr()],
        *((axis, part.global_offset[axis], part.global_shape[axis]) for axis in range(prepended)),
        (prepended + _ROWS, group.rank(), group.size()),
        replica_id=value.replica_id,
        prepend_axis_num=prepended,
    )


def over_shares(config: OptimizerConfig, chunks: list[Any]) -> MegatronOptimizer:
    """Megatron's optimizer over this rank's shares, and the gradient norm over all ranks'."""
    optimizer = get_megatron_optimizer(
        config, [chunk.shards for chunk in chunks], use_gloo_process_groups=False
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for part in optimizer.chained_optimizers:
        part.grad_stats_parallel_group = group
    return optimizer


def shard(settings: StageSettings, config: Any, chunk: nn.Module) -> FullyShardedDataParallel:
    """A chunk built by `without_memory`, sharded, with initial weights.

    Raises:
        RuntimeError: as `initialize.draw_weights`.
    """
    wrapped = FullyShardedDataParallel(config, chunk)
    if config.perform_initialization:
        draw_weights(settings, wrapped.shards)
        _round(wrapped.shards, config.params_dtype)
    return wrapped


@torch.no_grad()
def _round(shards: Shards, dtype: torch.dtype) -> None:
    """Start from the numbers of every other layout: vectors as built, all in the model's type."""
    for name, tensor in shards.named_parameters():
        if tensor.ndim == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        tensor.copy_(tensor.to(dtype))


def holder(chunk: Any) -> Any:
    """What holds the tensors of a wrapped chunk as this rank's plain ones."""
    return getattr(chunk, "shards", chunk.module)
