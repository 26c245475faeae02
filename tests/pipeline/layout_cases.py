"""Parallel layouts whose losses are held against one process, by number of processes."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "hardware": "cpu",
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "vocab_size": 304,
    "tokenizer_vocab_size": 300,
    "max_position_embeddings": 64,
    "seq_length": 16,
    "micro_batch_size": 1,
    "global_batch_size": 4,
    "bf16": False,
    "lr": 3e-3,
    "lr_warmup_iters": 0,
    "lr_decay_iters": 50,
    "train_iters": 50,
}
_EXPERTS: dict[str, Any] = {
    "num_attention_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 16,
    "num_experts": 8,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 32,
    "moe_shared_expert_intermediate_size": 32,
}
# Family → experiment that is shrunken, and how.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("llama3_8B_tiny", _COMMON | {"num_attention_heads": 8, "num_query_groups": 4}),
    "v2": ("deepseek_v2_tiny", _COMMON | _EXPERTS),
    "v3": ("deepseek_v3_tiny", _COMMON | _EXPERTS),
}

_SHORT = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "VPP": "virtual_pipeline_model_parallel_size",
    "CP": "context_parallel_size",
    "EP": "expert_model_parallel_size",
    "ETP": "expert_tensor_parallel_size",
    "SP": "sequence_parallel",
    "MBS": "micro_batch_size",
    "sharded": "use_distributed_optimizer",
    "overlap": "overlap_grad_reduce",
    "gather": "overlap_param_gather",
}


def layout(**short: Any) -> dict[str, Any]:
    """Settings from the usual abbreviations; other keys stay as they are."""
    return {_SHORT.get(name, name): value for name, value in short.items()}


PLAIN = {"sharded": False, "overlap": False}

# Number of processes → family → layouts.
CASES: dict[int, dict[str, list[dict[str, Any]]]] = {
    1: {
        "dense": [
            layout(MBS=4),
            layout(**PLAIN),
            layout(
                recompute_granularity="full", recompute_method="uniform", recompute_num_layers=2
            ),
            layout(recompute_granularity="full", recompute_method="block", recompute_num_layers=3),
            *(
                layout(recompute_granularity="selective", recompute_modules=[name])
                for name in ("core_attn", "mlp", "layernorm")
            ),
        ],
        "v2": [layout(MBS=4)],
        "v3": [
            layout(MBS=4),
            layout(
                recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1
            ),
            *(
                layout(recompute_granularity="selective", recompute_modules=[name])
                for name in ("core_attn", "mlp", "layernorm", "moe", "mla_up_proj")
            ),
        ],
    },
    2: {
        "dense": [
            layout(TP=2),
            layout(TP=2, SP=True),
            layout(TP=2, make_vocab_size_divisible_by=64),
            layout(PP=2),
            layout(PP=2, VPP=2),
            layout(PP=2, decoder_first_pipeline_num_layers=1),
            layout(CP=2),
            layout(),
            layout(**PLAIN),
            layout(overlap=False),
            layout(gather=True),
        ],
        "v2": [
            layout(EP=2),
            layout(TP=2, SP=True, eod_mask_loss=True),
            layout(PP=2),
            layout(CP=2),
        ],
        "v3": [
            layout(),
            layout(EP=2),
            layout(EP=2, moe_token_dispatcher_type="allgather"),
            layout(TP=2, SP=True, EP=2, ETP=1),
            layout(PP=2),
            layout(PP=2, VPP=2),
            layout(CP=2),
        ],
    },
    4: {
        "dense": [
            layout(PP=4),
            layout(PP=2, decoder_last_pipeline_num_layers=3),
            layout(TP=2, PP=2),
            layout(TP=2, SP=True, CP=2),
            layout(TP=2, SP=True),
        ],
        "v3": [
            layout(EP=4),
            layout(EP=2, **PLAIN),
            layout(TP=2, SP=True, EP=2, ETP=2),
            layout(PP=2, EP=2),
        ],
    },
    8: {
        "dense": [
            layout(TP=2, SP=True, PP=2, CP=2),
            layout(TP=2, SP=True, PP=2, VPP=2),
            layout(TP=2, PP=2, gather=True),
        ],
        "v3": [layout(TP=2, SP=True, PP=2, EP=2), layout(TP=2, SP=True, PP=2, EP=4, ETP=1)],
    },
}


def name_of(changes: dict[str, Any]) -> str:
    """A case in one line."""
    long = {value: key for key, value in _SHORT.items()}
    words = [f"{long.get(key, key)}={value}" for key, value in changes.items()]
    return " ".join(words) or "data parallel"


# Number of processes → family → layouts that save, and load what others saved.
RESHARDED: dict[int, dict[str, list[dict[str, Any]]]] = {
    1: {"dense": [layout(), layout(**PLAIN)], "v3": [layout(), layout(**PLAIN)]},
    2: {
        "dense": [layout(TP=2, SP=True), layout(PP=2, VPP=2), layout(CP=2), layout(**PLAIN)],
        "v3": [layout(EP=2), layout(PP=2), layout(TP=2, SP=True, ETP=1)],
    },
    4: {
        "dense": [layout(TP=2, PP=2)],
        "v3": [layout(EP=4), layout(PP=2, EP=2)],
    },
}


def sources_of(family: str, name: str) -> list[str]:
    """Whose checkpoints a layout loads: those of one process, and that of the layout before."""
    names = [
        f"{world} ranks, {name_of(changes)}"
        for world, families in RESHARDED.items()
        for changes in families[family]
    ]
    before = names[names.index(name) - 1]
    return list(dict.fromkeys((names[0], names[1], before)))
