"""Process groups, and the model wrapped for data parallelism."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module
from torch import distributed

from primus.config.frozen import StageSettings
from primus.ranks.network import stay_local
from primus.trainer.fully_sharded import shard, without_memory
from primus.trainer.gloo import share_devices
from primus.trainer.initialize import draw_weights, leave_weights
from primus.trainer.model import ModelConfig, build_model, use_transformer_engine
from primus.trainer.platform import exchange_uneven_parts


def initialize(settings: StageSettings, *, timeout_minutes: float) -> None:
    """Join the job's process group and make Megatron's groups.

    Started by an agent, the rendezvous comes from its environment; otherwise this process is the
    whole job.
    """
    backend = "gloo" if settings.platform == "cpu" else "nccl"
    timeout = timedelta(minutes=timeout_minutes)
    if "RANK" not in os.environ:
        os.environ.update(stay_local())
    if backend == "gloo":
        share_devices()
    if "RANK" in os.environ:
        distributed.init_process_group(backend, timeout=timeout)
    else:
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    initialize_groups(settings)


def initialize_groups(settings: StageSettings) -> None:
    """Make Megatron's process groups inside the job's, and seed the generators."""
    if settings.platform == "cpu":
        exchange_uneven_parts()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=settings.tensor_model_parallel_size,
        pipeline_model_parallel_size=settings.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=settings.virtual_pipeline_model_parallel_size,
        context_parallel_size=settings.context_parallel_size,
        expert_model_parallel_size=settings.expert_model_parallel_size,
        expert_tensor_parallel_size=settings.expert_tensor_parallel_size,
        create_gloo_process_groups=False,
    )
    seed(settings)


def seed(settings: StageSettings) -> None:
    """Seed dropout as upstream does: pipeline stages and tensor-parallel ranks differ.

    Weights have generators of their own.
    """
    value = settings.seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(value)
    model_parallel_cuda_manual_seed(value)
    # On CPU the line before drew from, and moved, the default generator.
    torch.manual_seed(value)


def build_chunks(
    settings: StageSettings, config: ModelConfig, *, float16_module: bool = True
) -> list[torch.nn.Module]:
    """This rank's model chunks, one unless the schedule is interleaved.

    Args:
        float16_module: in lower precision, wrap each chunk so that it takes and gives float32.
        config: where its `perform_initialization` is false, weights are left undefined.
    """
    # A mean over all tokens, where a mean of the ranks' means would be another number: masked
    # tokens, and the end of a sequence, for which there is no token to predict further ahead.
    config.calculate_per_token_loss = settings.eod_mask_loss or bool(settings.mtp_num_layers)
    if config.perform_initialization:
        leave_weights(config)
    virtual = settings.virtual_pipeline_model_parallel_size
    chunks = []
    for stage in range(virtual or 1):
        vp_stage = stage if virtual else None
        with _place(settings, config):
            chunk = build_model(
                settings,
                config,
                pre_process=parallel_state.is_pipeline_first_stage(
                    ignore_virtual=False, vp_stage=vp_stage
                ),
                post_process=parallel_state.is_pipeline_last_stage(
                    ignore_virtual=False, vp_stage=vp_stage
                ),
                vp_stage=vp_stage,
            )
        chunk.model_type = ModelType.encoder_or_decoder
        if settings.platform != "cpu" and not settings.use_torch_fsdp2:
            chunk.cuda(torch.cuda.current_device())
        _mark_experts(chunk)
        if config.perform_initialization and not settings.use_torch_fsdp2:
            draw_weights(settings, chunk)
        if float16_module and (settings.bf16 or settings.fp16):
            chunk = Float16Module(config, chunk)
        chunks.append(chunk)
    return chunks


def _mark_experts(chunk: torch.nn.Module) -> None:
    """Reduce the gradients of experts over their own data-parallel group, in their own optimizer.

    Upstream does so only for more than one expert-parallel rank; without, it forgets the group
    where expert_tensor_parallel_size is not tensor_model_parallel_size, and writes checkpoints
    that no other expert-parallel size can load.
    """
    for name, parameter in chunk.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False  # type: ignore[attr-defined]


def _place(settings: StageSettings, config: ModelConfig) -> AbstractContextManager[None]:
    """Where the weights of a model that is built go: its device, or nowhere yet."""
    if not settings.use_torch_fsdp2:
        return nullcontext()
    return without_memory(config, transformer_engine=use_transformer_engine(settings))


def wrap(
    settings: StageSettings, config: ModelConfig, chunks: list[torch.nn.Module]
) -> list[torch.nn.Module]:
    """Chunks under data parallelism: Megatron's, with float32 gradients in flat buffers, or FSDP2.

    Fully sharded chunks get their weights only here.
    """
    config.finalize_model_grads_func = finalize_model_grads
    if settings.use_torch_fsdp2:
        return [shard(settings, config, chunk) for chunk in chunks]
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=settings.overlap_grad_reduce,
        overlap_param_gather=settings.overlap_param_gather,
        use_distributed_optimizer=settings.use_distributed_optimizer,
    )
    wrapped: list[torch.nn.Module] = [
        DistributedDataParallel(
            config=config, ddp_config=ddp_config, module=chunk, disable_bucketing=number > 0
        )
        for number, chunk in enumerate(chunks)
    ]
    if settings.overlap_grad_reduce:
        config.no_sync_func = [chunk.no_sync for chunk in wrapped]
        if len(wrapped) == 1:
            config.no_sync_func = config.no_sync_func[0]
    if settings.overlap_param_gather:
        config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
        if len(wrapped) == 1:
            config.param_sync_func = config.param_sync_func[0]
    return wrapped


def layout(settings: StageSettings) -> dict[str, int]:
    """Sizes of the parallel groups by Megatron's names."""
    names = (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
    )
    sizes = {name: int(getattr(settings, name)) for name in names}
    sizes["virtual_pipeline_model_parallel_size"] = (
        settings.virtual_pipeline_model_parallel_size or 1
    )
    sizes["expert_tensor_parallel_size"] = parallel_state.get_expert_tensor_parallel_world_size()
    sizes["data_parallel_size"] = parallel_state.get_data_parallel_world_size()
    return sizes


def data_parallel() -> tuple[int, int]:
    """This rank's place among the data-parallel ranks, and their number."""
    return (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )


def sees_all_gemms() -> bool:
    """Whether this rank counts when GEMMs are listed: one per pipeline stage does.

    The others hold another part of the same layers, or repeat them for other samples.
    """
    first_tensor = parallel_state.get_tensor_model_parallel_rank() == 0
    data = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    return bool(first_tensor and data == 0)


def count_parameters(chunks: list[torch.nn.Module]) -> int:
    """Parameters of the whole model, each counted once; collective.

    A parameter that tensor-parallel ranks hold in common counts on the first of them, an embedding
    that two pipeline stages hold on the first stage.
    """
    own = [0, 0]
    first = (
        parallel_state.get_tensor_model_parallel_rank() == 0,
        parallel_state.get_expert_tensor_parallel_rank() == 0,
    )
    for chunk in chunks:
        for parameter in chunk.parameters():
            expert = not getattr(parameter, "allreduce", True)
            split = getattr(parameter, "tensor_model_parallel", False)
            if (first[expert] or split) and not getattr(parameter, "shared", False):
                own[expert] += parameter.numel()
    groups = (
        parallel_state.get_model_parallel_group(),
        parallel_state.get_expert_tensor_model_pipeline_parallel_group(),
    )
    total = 0
    for number, group in zip(own, groups, strict=True):
        count = torch.tensor([number], dtype=torch.int64, device=torch.cuda.current_device())
        distributed.all_reduce(count, group=group)
        total += int(count.item())
    return total
