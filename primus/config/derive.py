"""Values that follow from others where the user leaves them open."""

from __future__ import annotations

from typing import Any

from primus.config.schema.settings import Settings


def derived(settings: Settings) -> dict[str, Any]:
    """Every default that depends on other keys, so that the identity holds its value.

    The schedule's length is the one with consequences: left open it becomes train_iters, and
    then belongs to the identity of the run.
    """
    filled: dict[str, Any] = {}
    if settings.num_query_groups is None:
        filled["num_query_groups"] = settings.num_attention_heads
    if settings.kv_channels is None:
        filled["kv_channels"] = settings.hidden_size // settings.num_attention_heads
    if settings.lr_decay_iters is None and settings.lr_decay_style != "constant":
        filled["lr_decay_iters"] = settings.train_iters
    if settings.tokenizer_vocab_size is None and settings.tokenizer_model is None:
        filled["tokenizer_vocab_size"] = settings.vocab_size
    return filled
