"""Settings of a model that is small enough for unit tests, and what is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.config.schema.keys import Stage

REPOSITORY = Path(__file__).parents[2]
# What the small tokenizer is trained on.
TEXT = "It was the best of times, it was the worst of times.\n\nCafé: 12 × 3 = 36.\n"
TINY: dict[str, Any] = {
    "hardware": "cpu",
    "nproc_per_node": 1,
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 512,
    "tokenizer_vocab_size": 512,
    "max_position_embeddings": 64,
    "seq_length": 32,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "bf16": False,
}


# The families of DeepSeek, small: all of their features.
LATENT: dict[str, Any] = {
    "hardware": "cpu",
    "nproc_per_node": 1,
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "kv_lora_rank": 24,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "num_experts": 8,
    "moe_layer_freq": "([0]*1+[1]*1)",
    "moe_ffn_hidden_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "moe_router_topk": 4,
    "vocab_size": 512,
    "tokenizer_vocab_size": 512,
    "max_position_embeddings": 640,
    "original_max_position_embeddings": 16,
    "seq_length": 32,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "bf16": False,
}


def tiny(stage: Stage = "train", **changes: Any) -> StageSettings:
    """The stage's settings of the shipped tiny experiment, shrunken and changed."""
    return _shrunken("llama3_8B_tiny", stage, TINY | changes)


def tiny_deepseek(family: str, stage: Stage = "train", **changes: Any) -> StageSettings:
    """As `tiny`, of deepseek_v2_lite, deepseek_v2 or deepseek_v3."""
    rank = {} if family == "deepseek_v2_lite" else {"q_lora_rank": 40}
    return _shrunken(f"{family}_tiny", stage, LATENT | rank | changes)


def _shrunken(experiment: str, stage: Stage, values: dict[str, Any]) -> StageSettings:
    resolved = load(experiment, values, root=REPOSITORY, stages=())
    made = identities(resolved.settings)[stage]
    return StageSettings.of_key(made, "tiny")
