"""How a model is laid out over ranks. Names are Megatron's."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, Stage, key

_SHAPES_AND_TRAIN: tuple[Stage, ...] = ("shapes", "train")


class Parallel(Keys):
    """Keys of the parallel layout."""

    nodes: int = key(1, doc="Nodes of the training job.", identity="train", ge=1)
    tensor_model_parallel_size: int = key(
        1, doc="Ranks that share each layer.", identity=_SHAPES_AND_TRAIN, ge=1
    )
    pipeline_model_parallel_size: int = key(
        1, doc="Stages of the pipeline.", identity=_SHAPES_AND_TRAIN, ge=1
    )
    virtual_pipeline_model_parallel_size: int | None = key(
        None,
        doc="Model chunks per pipeline stage (interleaved schedule).",
        identity=_SHAPES_AND_TRAIN,
        ge=2,
    )
    context_parallel_size: int = key(
        1, doc="Ranks that share each sequence.", identity=_SHAPES_AND_TRAIN, ge=1
    )
    expert_model_parallel_size: int = key(
        1,
        doc="Ranks that share the experts of each layer.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    expert_tensor_parallel_size: int | None = key(
        None,
        doc="Ranks that share each expert; null: tensor_model_parallel_size.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    decoder_first_pipeline_num_layers: int | None = key(
        None,
        doc="Layers of the first pipeline stage; null: as many as the others.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    decoder_last_pipeline_num_layers: int | None = key(
        None,
        doc="Layers of the last pipeline stage; null: as many as the others.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    sequence_parallel: bool = key(
        False,
        doc="Split norms and dropouts over the tensor-parallel ranks.",
        identity=_SHAPES_AND_TRAIN,
    )
    use_distributed_optimizer: bool = key(
        True, doc="Shard the optimizer over the data-parallel ranks.", identity="train"
    )
    use_torch_fsdp2: bool = key(
        False,
        doc="Shard weights and gradients as well, by torch's FSDP2.",
        identity=_SHAPES_AND_TRAIN,
    )
    overlap_grad_reduce: bool = key(
        True, doc="Reduce gradients while the backward pass runs.", identity="train"
    )
    overlap_param_gather: bool = key(
        False, doc="Gather parameters while the forward pass runs.", identity="train"
    )
    recompute_granularity: Literal["full", "selective"] | None = key(
        None, doc="Recompute activations in the backward pass.", identity=_SHAPES_AND_TRAIN
    )
    recompute_method: Literal["uniform", "block"] | None = key(
        None, doc="Which layers full recomputation takes.", identity=_SHAPES_AND_TRAIN
    )
    recompute_num_layers: int | None = key(
        None, doc="Layers per group, or per stage (block).", identity=_SHAPES_AND_TRAIN, ge=1
    )
    recompute_modules: list[
        Literal["core_attn", "mla_up_proj", "layernorm", "moe_act", "mlp", "moe"]
    ] = key(
        ["core_attn"],
        doc="What selective recomputation takes. core_attn: attention keeps no scores; only on a "
        "CPU it does so by itself.",
        identity=_SHAPES_AND_TRAIN,
    )
    transformer_impl: Literal["auto", "transformer_engine", "local"] = key(
        "auto",
        doc="Layer implementation; auto: transformer-engine where it is installed.",
        identity=_SHAPES_AND_TRAIN,
    )
