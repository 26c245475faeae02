"""What a run takes: parameters, memory, FLOPs, time. For `primus.plan` and the dry run's line."""

from __future__ import annotations

from typing import Any

from primus.config import memory
from primus.config.activations import micro_batches
from primus.config.estimate import checkpoint_bytes, estimate, tokens_per_step
from primus.config.flops import flops_per_token
from primus.config.layout import layers_per_stage, layout
from primus.config.parameters import parameters, rank_parameters

VERSION = 1


def summary(s: Any, efficiency: float | None = None) -> dict[str, Any]:
    """The plan of a checked experiment as plain values; bytes, seconds and GiB are named so.

    Args:
        efficiency: share of the measured peak to reckon with; None: see `estimate`.
    """
    share, counted = layout(s), parameters(s)
    per_stage = memory.stages(s)
    fullest = max(range(len(per_stage)), key=lambda stage: per_stage[stage].total)
    time = estimate(s, efficiency)
    return {
        "schema_version": VERSION,
        "experiment": s.experiment,
        "model": s.model,
        "hardware": s.hardware,
        "parameters": {
            "total": counted.total,
            "active": counted.active,
            "multi_token_prediction": counted.multi_token_prediction,
            "published": s.published_parameters,
            "by_part": dict(counted.by_part),
            "on_fullest_rank": dict(rank_parameters(s)[fullest].by_part),
        },
        "layout": {
            "nodes": s.nodes,
            "ranks": share.world,
            "tensor_model_parallel_size": share.tensor,
            "pipeline_model_parallel_size": share.pipeline,
            "virtual_pipeline_model_parallel_size": share.virtual,
            "context_parallel_size": share.context,
            "expert_model_parallel_size": share.expert,
            "expert_tensor_parallel_size": share.expert_tensor,
            "data_parallel_size": share.data,
            "expert_data_parallel_size": share.expert_data,
            "layers_per_stage": list(layers_per_stage(s)),
            "micro_batches": micro_batches(s),
            "use_torch_fsdp2": s.use_torch_fsdp2,
        },
        "memory_per_rank_gib": per_stage[fullest].gib,
        "memory_fullest_stage": fullest,
        "device_memory_gib": s.device_memory_gib,
        "flops_per_token": flops_per_token(s),
        "tokens_per_step": tokens_per_step(s),
        "tokens": tokens_per_step(s) * s.train_iters,
        "time": None if time is None else vars(time),
        "checkpoint_bytes": checkpoint_bytes(s),
    }


def line(s: Any) -> str:
    """The plan in one line, for the dry run."""
    plan = summary(s)
    counted, gib, time = plan["parameters"], plan["memory_per_rank_gib"], plan["time"]
    words = [f"{billions(counted['total'])} parameters"]
    if counted["active"] != counted["total"]:
        words[0] += f" ({billions(counted['active'])} active)"
    sharded = " fully sharded" if s.use_torch_fsdp2 else ""
    words.append(f"{layout(s)}{sharded} on {plan['layout']['ranks']} ranks of {s.hardware}")
    limit = "" if s.device_memory_gib is None else f" of {s.device_memory_gib:g}"
    parts = ", ".join(f"{name} {size:.3g}" for name, size in gib.items() if name != "total")
    words.append(f"{gib['total']:.4g}{limit} GiB per rank ({parts})")
    words.append(f"{flops(plan['flops_per_token'])} per token")
    if time is not None:
        words.append(
            f"about {duration(time['seconds_per_step'])} a step and {time['gpu_hours']:,.0f} "
            f"GPU-hours (at {time['efficiency']:.0%} of {time['peak_tflops']:g} TFLOP/s)"
        )
    return f"{s.experiment}: {'; '.join(words)}"


def billions(number: float) -> str:
    """A number of parameters in three digits."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:.0f}B"
    return str(number)


def amount(number: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def flops(number: float) -> str:
    """FLOPs in a unit that suits them."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}FLOP"
    return f"{number:.0f} FLOP"


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
