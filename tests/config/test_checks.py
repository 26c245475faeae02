"""Layouts, experts, latent attention and precision that do not go together: one line each."""

from __future__ import annotations

from typing import Any

import pytest
from config_root import Root

from primus.config.load import load
from primus.errors import ConfigError

DENSE: dict[str, Any] = {}
LITE = {"model": "deepseek_v2_lite_tiny"}
V2 = {"model": "deepseek_v2_tiny"}
V3 = {"model": "deepseek_v3_tiny"}
FOUR = {"nproc_per_node": 4}
TP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
FSDP2 = {"use_torch_fsdp2": True, "use_distributed_optimizer": False}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def faults(root: Root, values: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key, reason and fix of every mistake."""
    with pytest.raises(ConfigError) as caught:
        load("x", values, root=root.path)
    return [(problem.key, problem.why, problem.fix) for problem in caught.value.problems]


# (values, key, part of the reason, part of the fix)
WRONG = [
    (FSDP2 | TP2, "tensor_model_parallel_size", "does not go with use_torch_fsdp2", "write 1"),
    (
        FSDP2 | {"use_distributed_optimizer": True},
        "use_distributed_optimizer",
        "does not go with use_torch_fsdp2",
        "write false",
    ),
    (V2 | FSDP2, "use_torch_fsdp2", "this one has num_experts", "write use_torch_fsdp2: false"),
    (
        FSDP2 | {"untie_embeddings_and_output_weights": False},
        "use_torch_fsdp2",
        "needs untie_embeddings_and_output_weights",
        "write use_torch_fsdp2: false",
    ),
    (
        FSDP2 | FOUR | {"vocab_size": 2050},
        "make_vocab_size_divisible_by",
        "2050 rows, which 4 data-parallel ranks cannot share",
        "write 4",
    ),
    (
        V2 | {"expert_model_parallel_size": 4},
        "expert_model_parallel_size",
        "2 ranks (nodes 1 x nproc_per_node 2) cannot be split into groups of expert TP 1 x EP 4 x "
        "PP 1 = 4",
        "write one of 1, 2",
    ),
    (
        V2 | FOUR | TP2 | {"expert_model_parallel_size": 4},
        "expert_model_parallel_size",
        "expert TP 2 x EP 4",
        "write one of 1, 2",
    ),
    (
        V2 | {"nproc_per_node": 3, "global_batch_size": 24, "expert_model_parallel_size": 3},
        "expert_model_parallel_size",
        "num_experts 16 is not a multiple of it",
        "write one of 1, 2, 4, 8, 16",
    ),
    (
        V2 | {"tensor_model_parallel_size": 2},
        "sequence_parallel",
        "experts with tensor_model_parallel_size > 1 need it",
        "write true",
    ),
    (
        DENSE | {"expert_model_parallel_size": 2},
        "expert_model_parallel_size",
        "needs a model with num_experts",
        "write 1",
    ),
    (
        DENSE | {"expert_tensor_parallel_size": 2},
        "expert_tensor_parallel_size",
        "needs a model with num_experts",
        "remove the line",
    ),
    (
        DENSE | {"num_experts": 8},
        "num_experts",
        "needs moe_ffn_hidden_size",
        "add moe_ffn_hidden_size: 448",
    ),
    (
        DENSE | {"moe_ffn_hidden_size": 64},
        "moe_ffn_hidden_size",
        "needs num_experts",
        "remove the line, or write num_experts",
    ),
    (
        DENSE | {"moe_router_enable_expert_bias": True},
        "moe_router_enable_expert_bias",
        "needs num_experts",
        "remove the line",
    ),
    (V2 | {"add_bias_linear": True}, "add_bias_linear", "experts have no biases", "write false"),
    (
        V2 | TP2 | {"moe_ffn_hidden_size": 65, "moe_shared_expert_intermediate_size": 130},
        "moe_ffn_hidden_size",
        "is not a multiple of expert_tensor_parallel_size 2",
        "write 66",
    ),
    (
        V2 | TP2 | {"moe_ffn_hidden_size": 65, "moe_shared_expert_intermediate_size": 65}
        | {"expert_tensor_parallel_size": 1},
        "moe_shared_expert_intermediate_size",
        "is not a multiple of tensor_model_parallel_size 2",
        "write 66",
    ),
    (LITE | {"moe_router_topk": 9}, "moe_router_topk", "above num_experts 8", "at most 8"),
    (
        LITE | {"moe_router_num_groups": 2},
        "moe_router_num_groups",
        "needs moe_router_group_topk",
        "add moe_router_group_topk",
    ),
    (
        V2 | {"moe_router_num_groups": 3},
        "moe_router_num_groups",
        "num_experts 16 is not a multiple of it",
        "write one of 1, 2, 4, 8, 16",
    ),
    (
        V2 | {"moe_router_group_topk": 5},
        "moe_router_group_topk",
        "is above moe_router_num_groups 4",
        "write at most 4",
    ),
    (
        V2 | {"moe_router_topk": 9},
        "moe_router_topk",
        "is above the 8 experts of moe_router_group_topk 2 groups",
        "write at most 8",
    ),
    (
        V2 | {"moe_router_enable_expert_bias": True},
        "moe_router_enable_expert_bias",
        "balances sigmoid scores, and they are softmax",
        "write moe_router_score_function: sigmoid",
    ),
    (
        LITE | {"moe_router_topk": 1, "moe_router_pre_softmax": False},
        "moe_router_pre_softmax",
        "is always 1",
        "write true",
    ),
    (V3 | {"moe_aux_loss_coeff": 0.1}, "moe_aux_loss_coeff", "has no effect", "write 0.0"),
    (
        V3 | {"moe_layer_freq": "[0]*1+[1]*4"},
        "moe_layer_freq",
        "lists 5 layers, and num_layers is 4",
        "make it 4, such as ([0]*1+[1]*3)",
    ),
    (DENSE | {"moe_layer_freq": "[1]*4"}, "moe_layer_freq", "needs num_experts", "remove"),
    (V2 | {"moe_layer_freq": 0}, "moe_layer_freq", "must be >= 1", "write 1"),
    (LITE | {"v_head_dim": "null"}, "v_head_dim", "multi_latent_attention needs it", "add it"),
    (LITE | {"num_query_groups": 2}, "num_query_groups", "has no query groups", "remove"),
    (LITE | {"qk_pos_emb_head_dim": 15}, "qk_pos_emb_head_dim", "in pairs", "write 16"),
    (DENSE | {"kv_lora_rank": 32}, "kv_lora_rank", "needs multi_latent_attention", "remove"),
    (DENSE | {"rope_type": "yarn"}, "rope_type", "yarn is part of multi-latent", "write rope"),
    (
        DENSE | {"published_parameters": 1_377_409},
        "published_parameters",
        "gives 1377408 parameters, -1",
        "correct the dimensions",
    ),
    (
        DENSE | PP2 | {"decoder_last_pipeline_num_layers": 4},
        "decoder_last_pipeline_num_layers",
        "leaves 0 of 4 layers to 1 other pipeline stages",
        "decoder_last_pipeline_num_layers: 2",
    ),
    (
        DENSE | {"decoder_last_pipeline_num_layers": 4},
        "decoder_last_pipeline_num_layers",
        "needs pipeline_model_parallel_size > 1",
        "remove the line",
    ),
    (
        DENSE | PP2 | {"num_layers": 5},
        "pipeline_model_parallel_size",
        "num_layers 5 is not a multiple of it",
        "write one of 1, 5, or decoder_last_pipeline_num_layers: 2",
    ),
    (
        DENSE | PP2 | FOUR | {"num_layers": 8, "virtual_pipeline_model_parallel_size": 2}
        | {"global_batch_size": 24},
        "virtual_pipeline_model_parallel_size",
        "the 3 micro batches of an iteration are not a multiple of PP 2",
        "write global_batch_size: 16",
    ),
    (
        DENSE | PP2 | FULL | {"recompute_num_layers": 3},
        "recompute_num_layers",
        "is above the 2 layers of a pipeline stage",
        "write at most 2",
    ),
    (
        DENSE | FULL | {"recompute_num_layers": 3},
        "recompute_num_layers",
        "the 4 layers of a pipeline stage are not a multiple of it",
        "write one of 1, 2, 4",
    ),
    (
        V3 | FULL | {"recompute_num_layers": 2},
        "recompute_num_layers",
        "uniform with mtp_num_layers takes one layer at a time",
        "write 1, or recompute_method: block",
    ),
    (
        DENSE | {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
        "recompute_modules",
        "moe needs num_experts",
        "remove moe",
    ),
    (
        DENSE | {"recompute_granularity": "selective", "recompute_modules": ["mla_up_proj"]},
        "recompute_modules",
        "mla_up_proj needs multi_latent_attention",
        "remove mla_up_proj",
    ),
    (DENSE | {"fp8": "hybrid"}, "fp8", "needs bf16", "add bf16: true"),
    (DENSE | {"fp8": "hybrid", "bf16": True}, "fp8", "needs a GPU", "write null"),
    (
        DENSE | {"hardware": "h200", "fp8": "e4m3", "bf16": True, "transformer_impl": "local"}
        | {"global_batch_size": 32},
        "fp8",
        "needs transformer-engine, and transformer_impl is local",
        "write transformer_impl: auto",
    ),
    (DENSE | {"loss_scale": 128.0}, "loss_scale", "no effect without fp16", "write fp16: true"),
    (
        DENSE | {"fp16": True, "loss_scale": 128.0, "hysteresis": 3},
        "hysteresis",
        "belongs to a dynamic loss scale",
        "keep one",
    ),
    (
        DENSE | {"fp16": True, "min_loss_scale": 64.0, "initial_loss_scale": 8.0},
        "min_loss_scale",
        "is above initial_loss_scale 8",
        "write at most 8",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "key", "why", "fix"), WRONG)
def test_a_mistake_names_key_reason_and_fix(
    root: Root, values: dict[str, Any], key: str, why: str, fix: str
) -> None:
    found = faults(root, values)
    assert [name for name, _, _ in found] == [key], found
    assert why in found[0][1]
    assert fix in found[0][2]


# Upstream allows these; so do the checks.
RIGHT = [
    LITE | FOUR | {"expert_model_parallel_size": 4},
    V2 | FOUR | TP2 | {"expert_model_parallel_size": 4, "expert_tensor_parallel_size": 1},
    V3 | FOUR | PP2 | {"expert_model_parallel_size": 2},
    V3 | FOUR | {"context_parallel_size": 2, "expert_model_parallel_size": 4},
    V2 | {"num_attention_heads": 4, "hidden_size": 130, "ffn_hidden_size": 353},
    DENSE | PP2 | {"num_layers": 5, "decoder_last_pipeline_num_layers": 2},
    DENSE | PP2 | {"num_layers": 5, "decoder_first_pipeline_num_layers": 2}
    | {"decoder_last_pipeline_num_layers": 3},
    DENSE | PP2 | FULL | {"num_layers": 6, "decoder_first_pipeline_num_layers": 2}
    | {"recompute_method": "block", "recompute_num_layers": 4},
    V3 | FULL,
    V3 | {"recompute_granularity": "selective", "recompute_modules": ["moe", "mla_up_proj"]},
    DENSE | {"fp16": True, "initial_loss_scale": 65536.0},
    DENSE | {"hardware": "h200", "fp8": "hybrid", "bf16": True, "global_batch_size": 32},
]  # fmt: skip


@pytest.mark.parametrize("values", RIGHT)
def test_what_upstream_allows(root: Root, values: dict[str, Any]) -> None:
    assert load("x", values, root=root.path).settings.experiment == "x"
