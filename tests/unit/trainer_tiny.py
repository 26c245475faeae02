"""Settings of a model that is small enough for unit tests, and what is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.config.schema.keys import Stage

REPOSITORY = Path(__file__).parents[2]
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


def tiny(stage: Stage = "train", **changes: Any) -> StageSettings:
    """The stage's settings of the shipped tiny experiment, shrunken and changed."""
    resolved = load("llama3_8B_tiny", TINY | changes, root=REPOSITORY, stages=())
    made = identities(resolved.settings)[stage]
    return StageSettings(
        stage=stage,
        experiment="tiny",
        key=made.key,
        identity=made.identity,
        extent=made.extent,
        options=made.options,
        upstream=made.upstream,
    )
