"""What becomes of Primus' keys that this project's schema does not have under the same name.

Every key that stands in the Megatron experiments and model files of Primus up to August 2026 is
here or in the schema. A key that is in neither is unknown, and is never dropped without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Drop:
    """A key that is left out.

    Attributes:
        reason: why nothing is lost by that.
        harmless: the values for which this holds; None: any value. Another one asks for
            something that this project does not do, and is reported like an unknown key.
    """

    reason: str
    harmless: tuple[Any, ...] | None = None


def _words(text: str) -> list[str]:
    return text.split()


RENAMED = {"layernorm_epsilon": "norm_epsilon"}

# Keys of this project that are not Megatron's, or ask for more here than there: of that name in a
# file of Primus they mean something else, or nothing. There a project does not switch W&B on.
OWN_NAMES = frozenset(
    _words("""
    append_eod container data_version dataset device_memory_gib env gemm_backend gemm_tuning slurm
    hardware hf_dataset json_key keep_every keep_last hang_timeout_minutes
    lease_timeout_seconds load_checkpoint load_hf max_bad_lines model start_timeout_minutes
    ab evaluation model_card moe_router_group_score
    nodes nproc_per_node peak_tflops platform preflight published_parameters recipe threads_per_rank
    tokenizer_data_path tokenizer_vocab_size workers
    tensorboard tensorboard_dir wandb_project wandb_entity wandb_exp_name
    mlflow_experiment_name mlflow_run_name""")
)

# What primus/configs/modules/megatron/pre_trainer.yaml, and the files that it extends, hold for
# keys that an experiment leaves out and that have no or another default here.
PRESET: dict[str, Any] = {
    "bf16": True,
    "micro_batch_size": 2,
    "global_batch_size": 16,
    "train_iters": 1000,
    "seq_length": 1024,
    "lr": 2.0e-5,
    "lr_warmup_iters": 40,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "eval_interval": 1000,
    "eval_iters": 0,
    "save_interval": 1000,
    "log_interval": 1,
    "num_workers": 8,
    "distributed_timeout_minutes": 60,
    "make_vocab_size_divisible_by": 128,
    "sequence_parallel": True,
    "overlap_grad_reduce": False,
}
PRESET_NAME = "pre_trainer.yaml of Primus"

# Tokenizers of Primus that are transformers' own, read by the name in tokenizer_model.
HUGGING_FACE_TOKENIZERS = frozenset(
    f"{name}Tokenizer"
    for name in _words("HuggingFace Llama2 Llama3 Llama4 DeepSeekV2 DeepSeekV3 Mixtral KimiK2")
)

# The first word of a key, where all keys that begin with it are alike.
FAMILIES: dict[str, Drop] = {
    "wandb_": Drop("logging: metrics.jsonl and the report hold every figure"),
    "mlflow_": Drop("logging: metrics.jsonl and the report hold every figure"),
    "tensorboard_": Drop("logging: metrics.jsonl and the report hold every figure"),
    "profile_": Drop("profiling"),
    "pytorch_profiler_": Drop("profiling"),
    "torch_profiler_": Drop("profiling"),
    "use_turbo_": Drop("which kernels compute the same; transformer-engine's or torch's here"),
    "turbo_": Drop("which kernels compute the same; transformer-engine's or torch's here"),
    "tp_comm_": Drop("how ranks talk, not what they compute"),
    "tiktoken_": Drop("belongs to a tokenizer that is not read through transformers"),
    "mamba_": Drop("state-space layers: only with a model_type that is refused"),
    "linear_": Drop("linear attention: only with a model_type or spec that is refused"),
    "odc_": Drop("read only with enable_odc"),
}

_ANY: dict[str, str] = {
    "logging: metrics.jsonl and the report hold every figure": """
        stderr_sink_level file_sink_level sink_level log_avg_skip_iterations disable_mlflow
        log_avg_reset_interval disable_wandb disable_tensorboard log_throughput
        log_timers_to_tensorboard log_batch_size_to_tensorboard
        log_learning_rate_to_tensorboard log_loss_scale_to_tensorboard
        log_memory_to_tensorboard log_validation_ppl_to_tensorboard log_world_size_to_tensorboard
        moe_per_layer_logging barrier_with_L1_time""",
    "profiling": """
        profile use_pytorch_profiler use_nsys_profiler nvtx_ranges record_shapes
        record_memory_history memory_snapshot_path disable_profiler_activity_cpu""",
    "which kernels compute the same; transformer-engine's or torch's here": """
        apply_rope_fusion attention_backend bias_dropout_fusion bias_gelu_fusion
        bias_swiglu_fusion cross_entropy_fusion_impl cross_entropy_loss_fusion
        disable_primus_topk_router enable_fused_linear_ce enable_primus_turbo fused_ce_chunks
        fused_ce_mode fused_padded_mla_attention gradient_accumulation_fusion
        masked_softmax_fusion moe_permute_fusion moe_router_fusion
        moe_use_fused_router_with_aux_score moe_use_legacy_grouped_gemm no_persist_layer_norm
        use_flash_attn use_te_activation_func disable_delayed_scaling_patches
        no_fp8_weight_transpose_cache create_attention_mask_in_dataloader fla_cache_dir""",
    "how ranks talk, not what they compute": """
        align_param_gather async_tensor_model_parallel_allreduce cp_comm_type
        ddp_average_in_collective ddp_num_buckets distributed_backend high_priority_stream_groups
        hierarchical_context_parallel_sizes microbatch_group_size_per_vp_stage
        moe_deepep_num_sms moe_enable_deepep moe_flex_dispatcher_backend moe_hybridep_num_sms
        moe_shared_expert_overlap delay_wgrad_compute overlap_p2p_comm
        pipeline_model_parallel_comm_backend pp_warmup""",
    "memory housekeeping": """
        empty_cache_interval empty_unused_memory_level manual_gc manual_gc_eval
        manual_gc_interval clone_scatter_output_in_embedding""",
    "checkpoints are always saved, whole, under output/runs, the last iteration included": """
        save ckpt_format no_save_optim no_save_rng disable_last_saving
        dist_ckpt_strictness auto_detect_ckpt_format ckpt_fully_parallel_save""",
    "a run always goes on from its own last good checkpoint": """
        auto_continue_train exit_on_missing_checkpoint""",
    "says how to read load, which is refused where it is set": """
        finetune no_load_optim no_load_rng""",
    "the loop always stops at a loss or a gradient norm that is not finite": """
        check_for_nan_in_loss check_for_nan_in_loss_and_grad check_for_spiky_loss
        check_for_large_grads""",
    "samples come in this project's own order: seeded, and exact after a resume": """
        dataloader_type data_sharding""",
    "token files lie under output/data": "data_cache_path mmap_bin_files",
    "attention and router take their softmax in float32": "attention_softmax_in_fp32",
    "gradients of bf16 are reduced in float32, in Megatron too": """
        accumulate_allreduce_grads_in_fp32""",
    "weights are always initialised, or read": "perform_initialization use_cpu_initialization",
    "padding only: it changes no result": """
        moe_router_padding_for_fp8 moe_router_padding_for_quantization moe_token_drop_policy""",
    "read only with use_precision_aware_optimizer": """
        exp_avg_dtype exp_avg_sq_dtype main_grads_dtype main_params_dtype""",
    "read only with fp4": "fp4_recipe",
    "read only with use_sink_attention": "sink_sliding_window sink_window_even_layers_only",
    "opens paths whose own keys stand for themselves": "enable_experimental",
    "another name of a key that is read": "num_nextn_predict_layers",
    "belongs to a tokenizer that is not read through transformers": """
        legacy_tokenizer vocab_extra_ids vocab_file""",
    "remote code of a tokenizer is never run": "trust_remote_code",
}

_UNLESS: dict[str, dict[str, tuple[Any, ...]]] = {
    "off, as here": dict.fromkeys(
        _words("""
        add_position_embedding apply_layernorm_1p apply_query_key_layer_scaling
        apply_residual_connection_post_layernorm apply_wd_to_qk_layernorm attention_output_gate
        attn_sink conv_bias deprecated_use_mcore_models enable_odc enable_odc_lb_mini
        enable_packed_sequences enable_turbo_attention_float8 enable_turbo_gemm_float8
        fp32_residual_connection fp8_param_gather grad_reduce_in_bf16 hc_use_sinkhorn
        hybrid_attention_enabled is_hybrid_model latent_moe_use_norm mla_use_nope
        mla_use_output_gate moe_apply_probs_on_input moe_extended_tp moe_layer_recompute
        moe_pad_expert_input_to_capacity moe_shared_expert_gate moe_token_dropping
        moe_use_upcycling mtp_use_separate_hc_head openai_gelu qk_l2_norm quick_geglu
        rotary_interleaved sft_sanitize_nan_grads squared_relu use_deprecated_20241209_moe_layer
        use_fla_data use_fla_fused_gated_norm use_fla_fused_norm_gated use_fla_fused_rmsnorm
        use_fla_fused_swiglu use_fla_kda_in_kernel_gate use_fla_short_conv use_fla_triton_kda
        use_legacy_models use_megatron_fsdp use_packed_attention use_precision_aware_optimizer
        use_rotary_position_embeddings use_short_conv use_sink_attention
        use_v4_compiled_sinkhorn use_v4_fp8_indexer v4_grouped_experts_support_clamped_swiglu
        kda_use_full_rank_gate"""),
        (False, None, 0),
    ),
    "not set": dict.fromkeys(
        _words("""
        activation_func_clamp_value activation_situ_beta activation_situ_linear_beta
        attn_logit_softcapping attn_res_block_size attn_sliding_window compress_ratios
        compress_rope_theta data_args_path decoder_num_layers encoder_num_layers
        experimental_attention_variant final_logit_softcapping fla_mla_attn fp4 hf_path
        hybrid_override_pattern index_head_dim index_n_heads index_topk kda_backend
        kda_chunk_size kda_gate_lower_bound lfm_layer_types lb_mini_cost_model
        lb_mini_max_token_len load model_parallel_size moe_expert_capacity_factor
        moe_input_jitter_eps moe_latent_size moe_router_topk_limited_devices mtp_layer_type
        linear_attention_freq num_hash_layers num_layers_per_virtual_pipeline_stage
        o_groups o_lora_rank pipeline_model_parallel_layout pipeline_model_parallel_split_rank
        pretrained_checkpoint rampup_batch_size recompute_layer_ids routed_expert_hidden_size
        router_logit_softcapping sft_bridge_compat_inline_bos sft_conversation_format
        sft_dataset_name spec swiglu_limit train_samples use_kimi_k3_attention_backend
        use_v4_attention_backend use_v4_csa_attention_backend v4_indexer_distill_loss_coeff
        window_attn_skip_freq window_size hc_eps hc_mult hc_sinkhorn_iters
        quantile_balancing_center_bias quantile_balancing_ema_decay
        quantile_balancing_margin_max quantile_balancing_margin_min
        quantile_balancing_num_bins quantile_balancing_update_interval"""),
        (None,),
    ),
    "as here": {
        "activation_func": ("swiglu",),
        "data_parallel_sharding_strategy": ("no_shard",),
        "encoder_pipeline_model_parallel_size": (0,),
        "encoder_tensor_model_parallel_size": (0,),
        "hybrid_attention_ratio": (0, None),
        "hybrid_mlp_ratio": (0, None),
        "lora": ({"enabled": False}, None),
        "model_type": ("gpt",),
        "moe_router_bias_update_rule": ("sign", None),
        "optimizer": ("adam",),
        "position_embedding_type": ("rope",),
        "rotary_percent": (1,),
        "rotary_seq_len_interpolation_factor": (None, 1),
        "stage": (None, "pretrain"),
        "turbo_mega_moe_precision": ("bf16",),
    },
    "read only with lfm_layer_types": {"conv_L_cache": (None, 3)},
    "always so in Megatron": {"disable_mamba_mem_eff_path": (False, True)},
}

DROPPED: dict[str, Drop] = {
    **{name: Drop(reason) for reason, names in _ANY.items() for name in names.split()},
    **{
        name: Drop(reason, values)
        for reason, group in _UNLESS.items()
        for name, values in group.items()
    },
}

# Above the overrides: what an experiment file of Primus has around them.
AROUND: dict[str, str] = {
    "work_group": "names a folder of Primus' workspace; results lie under output/",
    "user_name": "names a folder of Primus' workspace; results lie under output/",
    "workspace": "results lie under output/",
    "platform": "machines are described under configs/hardware",
}


def dropped(name: str) -> Drop | None:
    """The entry of a key, or of the family that it belongs to."""
    if name in DROPPED:
        return DROPPED[name]
    return next((drop for prefix, drop in FAMILIES.items() if name.startswith(prefix)), None)
