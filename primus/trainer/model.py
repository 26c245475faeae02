"""Megatron's GPTModel from settings."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor
from torch.nn import functional as F

from primus.config.frozen import StageSettings
from primus.config.layer_pattern import expert_layers
from primus.errors import UnavailableError
from primus.trainer.kernels import cross_entropy
from primus.trainer.layers import block_spec, mtp_spec
from primus.trainer.linear import ColumnParallelLinear, Gemm, TorchGemm
from primus.trainer.platform import recompute_without_transformer_engine
from primus.trainer.routing import Router


@dataclass
class ModelConfig(MLATransformerConfig):
    """Upstream's configuration of all models, with or without latent attention, and ours.

    Attributes:
        gemm: what multiplies matrices in the local spec.
        expert_layers: which layers of the whole model hold experts.
        moe_router_group_score: what ranks a group of experts, "max" or "top2_sum".
        balanced_routing: send tokens to the experts in turn, whatever the scores, so that every
            shape is known beforehand; for watching GEMMs, also of fake tensors.
    """

    gemm: Gemm = field(default_factory=TorchGemm)
    expert_layers: tuple[bool, ...] = ()
    moe_router_group_score: str = "top2_sum"
    balanced_routing: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelConfig:
        # Upstream copies a configuration to change a number in it; what multiplies stays one.
        return copy(self)


class TrainedGPTModel(GPTModel):
    """GPTModel with our output layer and loss; it predicts further tokens only while it learns to.

    Also around transformer-engine's layers, which have neither: upstream takes the loss in several
    float32 copies of the logits, and adds the gradient of the weights apart.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.post_process:
            # GPTModel names the class of its output layer itself; the state stays the same.
            self.output_layer.__class__ = ColumnParallelLinear

    def _postprocess(self, hidden_states: Tensor, labels: Tensor | None, **rest: Any) -> Tensor:
        # Upstream does so in validation too, and has no logits to give without labels.
        if not self.mtp_process or (self.training and labels is not None):
            return super()._postprocess(  # type: ignore[no-any-return]
                hidden_states=hidden_states, labels=labels, **rest
            )
        tied = self.share_embeddings_and_output_weights
        logits, _ = self.output_layer(
            hidden_states,
            weight=self.shared_embedding_or_output_weight() if tied else None,
            runtime_gather_output=rest.get("runtime_gather_output"),
        )
        if labels is None:
            return logits.transpose(0, 1).contiguous()  # type: ignore[no-any-return]
        return self.compute_language_model_loss(labels, logits)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy (b, s) in float32 from logits (s, b, vocabulary of this rank).

        Rows that pad the vocabulary take no part: how many there are depends on the layout.
        """
        first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        own = max(0, self.real_vocab_size - first)
        if own < logits.shape[-1]:
            logits[..., own:] = float("-inf")
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
    local = settings.transformer_impl == "local" or settings.platform == "cpu"
    if local and settings.fp8 is None:
        return False
    try:
        import transformer_engine  # noqa: F401
    except ImportError as error:
        if settings.transformer_impl == "auto" and settings.fp8 is None:
            return False
        asked = (
            "transformer_impl = transformer_engine"
            if settings.fp8 is None
            else f"fp8 = {settings.fp8}"
        )
        raise UnavailableError(
            f"{asked}: transformer-engine is not installed. Fix: install the extra 'gpu', or set "
            + ("transformer_impl: local" if settings.fp8 is None else "fp8: null")
        ) from error
    return True


def model_config(settings: StageSettings, gemm: Gemm | None = None) -> ModelConfig:
    """Upstream's configuration for `settings`."""
    dtype = params_dtype(settings)
    virtual = settings.virtual_pipeline_model_parallel_size
    return ModelConfig(
        **_latent_attention(settings),
        **_experts(settings),
        **_fusions(settings),
        gemm=gemm or TorchGemm(),
        num_layers=settings.num_layers,
        hidden_size=settings.hidden_size,
        ffn_hidden_size=settings.ffn_hidden_size,
        num_attention_heads=settings.num_attention_heads,
        num_query_groups=settings.num_query_groups,
        kv_channels=settings.kv_channels,
        normalization=settings.normalization,
        qk_layernorm=settings.qk_layernorm,
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
        fp8=settings.fp8,
        fp8_recipe=settings.fp8_recipe,
        attention_softmax_in_fp32=True,
        use_cpu_initialization=settings.platform == "cpu",
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        tensor_model_parallel_size=settings.tensor_model_parallel_size,
        pipeline_model_parallel_size=settings.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=settings.context_parallel_size,
        expert_model_parallel_size=settings.expert_model_parallel_size,
        expert_tensor_parallel_size=settings.expert_tensor_parallel_size,
        sequence_parallel=settings.sequence_parallel,
        # With the interleaved schedule upstream's default exchange is silently wrong on gloo.
        overlap_p2p_comm=virtual is not None,
        batch_p2p_comm=virtual is None,
        recompute_granularity=settings.recompute_granularity,
        recompute_method=settings.recompute_method,
        recompute_num_layers=settings.recompute_num_layers,
        recompute_modules=list(settings.recompute_modules),
        num_layers_in_first_pipeline_stage=settings.decoder_first_pipeline_num_layers,
        num_layers_in_last_pipeline_stage=settings.decoder_last_pipeline_num_layers,
        mtp_num_layers=settings.mtp_num_layers,
        mtp_loss_scaling_factor=settings.mtp_loss_scaling_factor,
    )


def _fusions(settings: StageSettings) -> dict[str, Any]:
    """One kernel each for activation and rotation, around transformer-engine's layers.

    Ours have their own, and look at neither.
    """
    if not use_transformer_engine(settings):
        return {}
    from megatron.core.models.common.embeddings import rope_utils

    # Upstream's for latent attention is experimental, and for yarn only.
    rotates = rope_utils.fused_apply_rotary_pos_emb is not None
    return {
        "bias_activation_fusion": settings.swiglu,
        "apply_rope_fusion": rotates and not settings.multi_latent_attention,
    }


def _latent_attention(settings: StageSettings) -> dict[str, Any]:
    names = (
        "multi_latent_attention",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_head_dim",
        "qk_pos_emb_head_dim",
        "v_head_dim",
        "rope_type",
        "rotary_base",
        "rotary_scaling_factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    )
    values = {name: getattr(settings, name) for name in names}
    return values if settings.multi_latent_attention else {"multi_latent_attention": False}


def _experts(settings: StageSettings) -> dict[str, Any]:
    layers = expert_layers(settings)
    if not any(layers):
        return {"expert_layers": layers}
    names = (
        "moe_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
        "moe_router_topk",
        "moe_router_num_groups",
        "moe_router_group_topk",
        "moe_router_group_score",
        "moe_router_score_function",
        "moe_router_pre_softmax",
        "moe_router_topk_scaling_factor",
        "moe_router_enable_expert_bias",
        "moe_router_bias_update_rate",
        "moe_router_load_balancing_type",
        "moe_aux_loss_coeff",
        "moe_z_loss_coeff",
        "moe_router_dtype",
        "moe_router_force_load_balancing",
        "moe_token_dispatcher_type",
    )
    values = {name: getattr(settings, name) for name in names}
    return values | {
        "num_moe_experts": settings.num_experts,
        "expert_layers": layers,
        # A list gives each layer a place of its own in checkpoints.
        "moe_layer_freq": 1 if all(layers) else [int(layer) for layer in layers],
        "moe_grouped_gemm": settings.moe_grouped_gemm,
    }


def build_model(
    settings: StageSettings,
    config: ModelConfig,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    layers: TransformerBlockSubmodules | None = None,
) -> GPTModel:
    """One chunk of the model, on this rank's device, in `params_dtype`.

    Args:
        pre_process: the chunk holds the embedding. post_process: it holds the output layer.
        vp_stage: which of this rank's chunks under the interleaved schedule.
        layers: local layers instead of all that the chunk has, for a trace.
    """
    engine = use_transformer_engine(settings)
    if engine:
        spec, mtp = _transformer_engine_specs(config, vp_stage)
    else:
        recompute_without_transformer_engine()
        spec = layers or block_spec(config, vp_stage)
        mtp = mtp_spec(config, vp_stage)
    model = TrainedGPTModel(
        config=config,
        transformer_layer_spec=spec,
        mtp_block_spec=mtp,
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
    model.real_vocab_size = settings.vocab_size
    if engine and not settings.use_torch_fsdp2:
        # Told in the configuration, upstream's own layers would ask for apex.
        for module in model.modules():
            if hasattr(module, "fuse_wgrad_accumulation"):
                module.fuse_wgrad_accumulation = True
    return model


def _transformer_engine_specs(config: ModelConfig, vp_stage: int | None) -> tuple[Any, Any]:
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_decoder_block_spec,
        get_gpt_decoder_layer_specs,
        get_gpt_mtp_block_spec,
    )

    layers = get_gpt_decoder_layer_specs(config, use_transformer_engine=True)
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    mtp = get_gpt_mtp_block_spec(config, layers[-1], use_transformer_engine=True, vp_stage=vp_stage)
    inner = [layer.submodules.transformer_layer for layer in mtp.layer_specs] if mtp else []
    for layer in (*block.layer_specs, *inner):
        if isinstance(layer.submodules.mlp.submodules, MoESubmodules):
            layer.submodules.mlp.submodules.router = Router
    return block, mtp
