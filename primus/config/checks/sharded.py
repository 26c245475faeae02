"""What goes with weights that are sharded over the data-parallel ranks (use_torch_fsdp2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault
from primus.config.layout import layout
from primus.config.weights import head_size, query_groups

_ONE = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
)


def keys(s: Any, _: Context) -> Iterator[Fault]:
    """Keys that ask for another way to spread the model."""
    if not s.use_torch_fsdp2:
        return
    for key in _ONE:
        if getattr(s, key) != 1:
            fix = "write 1, or use_torch_fsdp2: false"
            yield Fault(key, "does not go with use_torch_fsdp2", fix)
    for key in ("use_distributed_optimizer", "overlap_param_gather", "fp16"):
        if getattr(s, key):
            yield Fault(key, "does not go with use_torch_fsdp2", "write false")
    if s.fp8 is not None:
        yield Fault("fp8", "does not go with use_torch_fsdp2", "write null")


def model(s: Any, _: Context) -> Iterator[Fault]:
    """Models that cannot be sharded so."""
    if not s.use_torch_fsdp2:
        return
    why, fix = "use_torch_fsdp2 is for dense models", "write use_torch_fsdp2: false"
    if s.num_experts is not None:
        yield Fault("use_torch_fsdp2", f"{why}, and this one has num_experts", fix)
    if s.mtp_num_layers is not None:
        yield Fault("use_torch_fsdp2", f"{why} without mtp_num_layers", fix)
    if not s.untie_embeddings_and_output_weights:
        why = "needs untie_embeddings_and_output_weights: the two lie in different units"
        yield Fault("use_torch_fsdp2", why, fix)


def rows(s: Any, _: Context) -> Iterator[Fault]:
    """Every rank has as many rows of each matrix as every other, so that checkpoints fit."""
    if not s.use_torch_fsdp2:
        return
    ranks, multiple = layout(s).data, s.make_vocab_size_divisible_by
    for key, number in (
        ("hidden_size", s.hidden_size),
        ("ffn_hidden_size", s.ffn_hidden_size * (2 if s.swiglu else 1)),
        ("num_query_groups", (s.num_attention_heads + 2 * query_groups(s)) * head_size(s)),
        ("make_vocab_size_divisible_by", -(-s.vocab_size // multiple) * multiple),
    ):
        if number % ranks:
            why = f"gives a weight {number} rows, which {ranks} data-parallel ranks cannot share"
            fix = "change the number of ranks, or write use_torch_fsdp2: false"
            if key == "make_vocab_size_divisible_by":
                fix = f"write {ranks}"
            yield Fault(key, f"{why} (use_torch_fsdp2)", fix)
