"""Megatron's GPTModel from settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from primus.config.frozen import StageSettings
from primus.errors import UnavailableError
from primus.trainer.kernels import cross_entropy
from primus.trainer.layers import block_spec
from primus.trainer.linear import ColumnParallelLinear, Gemm, TorchGemm


@dataclass
class ModelConfig(TransformerConfig):
    """Upstream's configuration plus the object that multiplies matrices in the local spec."""

    gemm: Gemm = field(default_factory=TorchGemm)


class LocalGPTModel(GPTModel):
    """GPTModel whose output layer and loss use our GEMMs and kernels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.post_process:
            # GPTModel names the class of its output layer itself; the state stays the same.
            self.output_layer.__class__ = ColumnParallelLinear

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy (b, s) in float32 from logits (s, b, vocabulary of this rank)."""
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            return super().compute_language_model_loss(labels, logits)  # type: ignore[no-any-return]
        s, b, vocabulary = logits.shape
        flat = labels.transpose(0, 1).reshape(-1)
        loss = cross_entropy(logits.view(s * b, vocabulary), flat)
        return loss.view(s, b).transpose(0, 1).contiguous()


def params_dtype(settings: StageSettings) -> torch.dtype:
    """Type of the parameters and activations."""
    if settings.bf16:
        return torch.bfloat16
    return torch.float16 if settings.fp16 else torch.float32


def padded_vocab_size(settings: StageSettings) -> int:
    """Rows of the embedding after padding, as Megatron pads them."""
    multiple = settings.make_vocab_size_divisible_by * settings.tensor_model_parallel_size
    return int(-(-settings.vocab_size // multiple) * multiple)


def use_transformer_engine(settings: StageSettings) -> bool:
    """Whether layers come from transformer-engine.

    Raises:
        UnavailableError: it was asked for by name and is not installed.
    """
    if settings.transformer_impl == "local" or settings.platform == "cpu":
        return False
    try:
        import transformer_engine  # noqa: F401
    except ImportError as error:
        if settings.transformer_impl == "auto":
            return False
        raise UnavailableError(
            "transformer_impl = transformer_engine: transformer-engine is not installed. "
            "Fix: install the extra 'gpu', or set transformer_impl: local"
        ) from error
    return True


def model_config(settings: StageSettings, gemm: Gemm | None = None) -> ModelConfig:
    """Upstream's configuration for `settings`."""
    dtype = params_dtype(settings)
    virtual = settings.virtual_pipeline_model_parallel_size
    return ModelConfig(
        gemm=gemm or TorchGemm(),
        num_layers=settings.num_layers,
        hidden_size=settings.hidden_size,
        ffn_hidden_size=settings.ffn_hidden_size,
        num_attention_heads=settings.num_attention_heads,
        num_query_groups=settings.num_query_groups,
        kv_channels=settings.kv_channels,
        normalization=settings.normalization,
        layernorm_epsilon=settings.norm_epsilon,
        gated_linear_unit=settings.swiglu,
        activation_func=F.silu if settings.swiglu else F.gelu,
        add_bias_linear=settings.add_bias_linear,
        add_qkv_bias=settings.add_qkv_bias,
        attention_dropout=settings.attention_dropout,
        hidden_dropout=settings.hidden_dropout,
        init_method_std=settings.init_method_std,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=settings.bf16,
        fp16=settings.fp16,
        attention_softmax_in_fp32=True,
        use_cpu_initialization=settings.platform == "cpu",
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        tensor_model_parallel_size=settings.tensor_model_parallel_size,
        pipeline_model_parallel_size=settings.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=settings.context_parallel_size,
        sequence_parallel=settings.sequence_parallel,
        # With the interleaved schedule upstream's default exchange is silently wrong on gloo.
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
        recompute_granularity=settings.recompute_granularity,
        recompute_method=settings.recompute_method,
        recompute_num_layers=settings.recompute_num_layers,
    )


def build_model(
    settings: StageSettings,
    config: ModelConfig,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    thin: Callable[[TransformerBlockSubmodules], TransformerBlockSubmodules] | None = None,
) -> GPTModel:
    """One chunk of the model, on this rank's device, in `params_dtype`.

    Args:
        pre_process: the chunk holds the embedding. post_process: it holds the output layer.
        vp_stage: which of this rank's chunks under the interleaved schedule.
        thin: takes layers out of the local specification, for a trace.
    """
    if use_transformer_engine(settings):
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
        model_class = GPTModel
    else:
        spec = block_spec(config, vp_stage)
        spec = thin(spec) if thin else spec
        model_class = LocalGPTModel
    return model_class(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=padded_vocab_size(settings),
        max_sequence_length=settings.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=not settings.untie_embeddings_and_output_weights,
        position_embedding_type="rope",
        rotary_base=settings.rotary_base,
        rope_scaling=settings.use_rope_scaling,
        rope_scaling_factor=settings.rope_scaling_factor,
        vp_stage=vp_stage,
    )
