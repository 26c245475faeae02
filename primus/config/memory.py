"""A lower bound on what the state of a model takes on each device."""

from __future__ import annotations

import os
from typing import Any

_GIB = 1 << 30


def parameters(s: Any) -> int:
    """Number of parameters of the whole model, the padding of the vocabulary included."""
    head = s.kv_channels or s.hidden_size // s.num_attention_heads
    groups = s.num_query_groups or s.num_attention_heads
    query, key_value = s.num_attention_heads * head, 2 * groups * head
    attention = s.hidden_size * (query + key_value) + query * s.hidden_size
    branches = 2 if s.swiglu else 1
    feed_forward = (branches + 1) * s.hidden_size * s.ffn_hidden_size
    biases = (query + key_value) if s.add_bias_linear or s.add_qkv_bias else 0
    if s.add_bias_linear:
        biases += 2 * s.hidden_size + branches * s.ffn_hidden_size
    layer = attention + feed_forward + biases + 2 * s.hidden_size
    multiple = s.make_vocab_size_divisible_by * s.tensor_model_parallel_size
    vocabulary = -(-s.vocab_size // multiple) * multiple
    tables = 2 if s.untie_embeddings_and_output_weights else 1
    return int(s.num_layers * layer + tables * vocabulary * s.hidden_size + s.hidden_size)


def this_machine_gib() -> float:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB


def least_gib_per_rank(s: Any, world: int) -> float:
    """GiB of weights, gradients and optimizer state on the average rank, no activations.

    In bf16 and fp16: 2 bytes of weights, 4 of gradients, 12 of optimizer (float32 weights and
    two moments). In fp32: 4, 4 and 8. The optimizer's part is shared by the data-parallel and
    context-parallel ranks where use_distributed_optimizer is on.

    Args:
        world: ranks of the whole job.
    """
    state, optimizer = (6, 12) if s.bf16 or s.fp16 else (8, 8)
    parts = s.tensor_model_parallel_size * s.pipeline_model_parallel_size
    sharers = world / parts if s.use_distributed_optimizer else 1
    return float(parameters(s) / parts * (state + optimizer / sharers) / _GIB)
