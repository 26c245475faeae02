"""What ranks share, and how it divides among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault, divisors
from primus.config.layer_pattern import expert_layers
from primus.config.layout import layout
from primus.config.weights import query_groups


def ranks(s: Any, _: Context) -> Iterator[Fault]:
    """Every model-parallel group needs the same number of ranks."""
    share = layout(s)
    if share.world % share.group:
        yield Fault(
            "nproc_per_node",
            f"{_ranks(s)} cannot be split into groups of TP {share.tensor} x PP {share.pipeline} "
            f"x CP {share.context} = {share.group}",
            f"make the product one of {divisors(share.world)}, "
            f"or the ranks a multiple of {share.group}",
        )


def expert_ranks(s: Any, _: Context) -> Iterator[Fault]:
    """The groups that share the experts need the same number of ranks too."""
    share = layout(s)
    if share.expert == 1 and share.expert_tensor == share.tensor:
        return
    stage = share.world // share.pipeline
    if share.world % share.group or stage % (share.expert * share.expert_tensor) == 0:
        return
    possible = stage // share.expert_tensor if stage % share.expert_tensor == 0 else stage
    yield Fault(
        "expert_model_parallel_size",
        f"{_ranks(s)} cannot be split into groups of expert TP {share.expert_tensor} x EP "
        f"{share.expert} x PP {share.pipeline} = {share.expert_group}",
        f"write one of {divisors(possible)}"
        + ("" if possible < stage else ", and expert_tensor_parallel_size: 1"),
    )


def batch(s: Any, _: Context) -> Iterator[Fault]:
    """A global batch is a whole number of micro batches on every data-parallel rank."""
    share = layout(s)
    if share.world % share.group:
        return
    step = s.micro_batch_size * share.data
    if s.global_batch_size % step:
        nearest = max(step, s.global_batch_size // step * step)
        yield Fault(
            "global_batch_size",
            f"is not a multiple of micro_batch_size {s.micro_batch_size} x "
            f"data parallel size {share.data} = {step}",
            f"write {nearest} or {nearest + step}",
        )


def heads(s: Any, _: Context) -> Iterator[Fault]:
    """Attention heads divide among ranks and groups, and the width among heads."""
    tp = s.tensor_model_parallel_size
    if s.num_attention_heads % tp:
        fix = f"write one of {divisors(s.num_attention_heads)}"
        why = f"num_attention_heads {s.num_attention_heads} is not a multiple of it"
        yield Fault("tensor_model_parallel_size", why, fix)
    if s.multi_latent_attention:
        return
    groups = query_groups(s)
    if s.num_attention_heads % groups:
        why = f"num_attention_heads {s.num_attention_heads} is not a multiple of it"
        yield Fault("num_query_groups", why, f"write one of {divisors(s.num_attention_heads)}")
    elif groups % tp and s.num_attention_heads % tp == 0:
        why = f"num_query_groups {groups} is not a multiple of it"
        yield Fault("tensor_model_parallel_size", why, f"write one of {divisors(groups)}")
    if s.kv_channels is None and s.hidden_size % s.num_attention_heads:
        why = f"is not a multiple of num_attention_heads {s.num_attention_heads}"
        yield Fault("hidden_size", why, "change one of the two, or write kv_channels")


def feed_forward(s: Any, _: Context) -> Iterator[Fault]:
    """The feed-forward layers divide among the ranks that share them."""
    share = layout(s)
    tensor = ("tensor_model_parallel_size", share.tensor)
    expert = ("expert_tensor_parallel_size", share.expert_tensor)
    widths = []
    if s.num_experts is None or not _all_experts(s):
        widths.append(("ffn_hidden_size", *tensor))
    if s.num_experts is not None:
        widths.append(("moe_ffn_hidden_size", *expert))
        widths.append(("moe_shared_expert_intermediate_size", *tensor))
    for key, name, parts in widths:
        width = getattr(s, key)
        if width is not None and width % parts:
            fix = f"write {width // parts * parts + parts}"
            yield Fault(key, f"is not a multiple of {name} {parts}", fix)


def sequence(s: Any, _: Context) -> Iterator[Fault]:
    """The sequence fits the model and divides among the ranks that share it."""
    tp, cp = s.tensor_model_parallel_size, s.context_parallel_size
    if s.seq_length > s.max_position_embeddings:
        why = f"is longer than max_position_embeddings {s.max_position_embeddings} of the model"
        yield Fault("seq_length", why, f"write at most {s.max_position_embeddings}")
    if cp > 1 and s.seq_length % (2 * cp):
        why = f"is not a multiple of 2 x context_parallel_size = {2 * cp}"
        yield Fault("seq_length", why, f"write {s.seq_length // (2 * cp) * 2 * cp + 2 * cp}")
    if not s.sequence_parallel:
        return
    if tp == 1:
        why = "needs tensor_model_parallel_size > 1"
        yield Fault("sequence_parallel", why, "write false, or raise tensor_model_parallel_size")
    elif s.seq_length % (tp * cp):
        why = f"sequence_parallel splits it over {tp * cp} ranks (TP x CP), not evenly"
        yield Fault("seq_length", why, f"write a multiple of {tp * cp}")


def _ranks(s: Any) -> str:
    world = s.nodes * s.nproc_per_node
    return f"{world} ranks (nodes {s.nodes} x nproc_per_node {s.nproc_per_node})"


def _all_experts(s: Any) -> bool:
    try:
        return all(expert_layers(s))
    except (ValueError, ZeroDivisionError):
        # `architecture.layer_pattern` says what is wrong with the pattern.
        return True
