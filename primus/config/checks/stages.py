"""Pipeline stages, their chunks, and what each of them recomputes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault, divisors
from primus.config.layout import layers_per_stage, layout

_FIRST, _LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"


def pipeline(s: Any, _: Context) -> Iterator[Fault]:
    """Layers divide among the stages."""
    stages = s.pipeline_model_parallel_size
    given = {key: getattr(s, key) for key in (_FIRST, _LAST) if getattr(s, key) is not None}
    layers, rest = s.num_layers - sum(given.values()), stages - len(given)
    if given and stages == 1:
        for key in given:
            why = "needs pipeline_model_parallel_size > 1"
            yield Fault(key, why, "remove the line, or raise pipeline_model_parallel_size")
    elif given and (layers < rest or (rest == 0 and layers)):
        why = f"leaves {layers} of {s.num_layers} layers to {rest} other pipeline stages"
        yield Fault(list(given)[-1], why, _ends(s) or "remove the line")
    elif rest and layers % rest:
        why = f"num_layers {s.num_layers} is not a multiple of it"
        if given:
            why = f"{layers} layers do not divide among {rest} stages"
        fix = f"write one of {divisors(s.num_layers)}"
        ends = _ends(s)
        yield Fault("pipeline_model_parallel_size", why, f"{fix}, or {ends}" if ends else fix)


def _ends(s: Any) -> str:
    """A last stage, and a first where that is needed, with which the layers divide; or nothing."""
    stages, chunks = s.pipeline_model_parallel_size, s.virtual_pipeline_model_parallel_size or 1
    first = s.decoder_first_pipeline_num_layers
    for middle in range(-(-s.num_layers // (stages * chunks)) * chunks, 0, -chunks):
        last = s.num_layers - middle * (stages - 1) + (middle - first if first else 0)
        if 0 < last <= middle and last % chunks == 0:
            return f"{_LAST}: {last}"
    return ""


def chunks(s: Any, _: Context) -> Iterator[Fault]:
    """Stages divide into chunks, and micro batches come in groups of stages."""
    pp, vpp = s.pipeline_model_parallel_size, s.virtual_pipeline_model_parallel_size
    key = "virtual_pipeline_model_parallel_size"
    if vpp is None:
        return
    if pp == 1:
        why = "needs pipeline_model_parallel_size > 1"
        yield Fault(key, why, "remove the line, or raise PP")
        return
    for number in sorted(set(_layers_per_stage(s))):
        if number % vpp:
            why = f"the {number} layers of a pipeline stage are not a multiple of it"
            yield Fault(key, why, f"write one of {divisors(number)}, or null")
    share = layout(s)
    micro_batches, left = divmod(s.global_batch_size, s.micro_batch_size * share.data)
    if share.world % share.group == 0 and not left and micro_batches % pp:
        why = f"the {micro_batches} micro batches of an iteration are not a multiple of PP {pp}"
        step = pp * s.micro_batch_size * share.data
        whole = max(step, s.global_batch_size // step * step)
        yield Fault(key, why, f"write global_batch_size: {whole}, or null here")


def recompute(s: Any, _: Context) -> Iterator[Fault]:
    """The keys of full recomputation go together, and with the layers of each chunk."""
    full = s.recompute_granularity == "full"
    if full and s.recompute_method is None:
        why = "needs recompute_method"
        yield Fault("recompute_granularity", why, "add recompute_method: uniform (or block)")
    if full and s.recompute_num_layers is None:
        why = "needs recompute_num_layers"
        yield Fault("recompute_granularity", why, "add recompute_num_layers: 1")
    for key in ("recompute_method", "recompute_num_layers"):
        if not full and getattr(s, key) is not None:
            why = "has no effect without recompute_granularity full"
            yield Fault(key, why, "remove the line, or write recompute_granularity: full")
    if not full or s.recompute_num_layers is None:
        return
    held = {size // (s.virtual_pipeline_model_parallel_size or 1) for size in _layers_per_stage(s)}
    if held and s.recompute_num_layers > max(held):
        what = "chunk" if s.virtual_pipeline_model_parallel_size else "pipeline stage"
        why = f"is above the {max(held)} layers of a {what}"
        yield Fault("recompute_num_layers", why, f"write at most {max(held)}")
    elif s.recompute_method == "uniform":
        for size in sorted(size for size in held if size % s.recompute_num_layers)[:1]:
            why = f"the {size} layers of a pipeline stage are not a multiple of it"
            yield Fault("recompute_num_layers", why, f"write one of {divisors(size)}")
        if s.mtp_num_layers and s.recompute_num_layers != 1:
            why = "recompute_method uniform with mtp_num_layers takes one layer at a time"
            yield Fault("recompute_num_layers", why, "write 1, or recompute_method: block")


def recompute_modules(s: Any, _: Context) -> Iterator[Fault]:
    """What selective recomputation takes exists in the model."""
    if s.recompute_granularity != "selective":
        return
    key, chosen = "recompute_modules", s.recompute_modules
    if not chosen:
        yield Fault(key, "is empty, and recompute_granularity is selective", "name a module")
    wanted = {
        "mla_up_proj": ("multi_latent_attention", s.multi_latent_attention),
        "moe_act": ("num_experts", s.num_experts),
        "moe": ("num_experts", s.num_experts),
    }
    for module in chosen:
        name, there = wanted.get(module, ("", True))
        if not there:
            yield Fault(key, f"{module} needs {name}", f"remove {module}")
    if "moe_act" in chosen and s.num_experts and not s.moe_grouped_gemm:
        yield Fault(key, "moe_act needs moe_grouped_gemm", "write moe_grouped_gemm: true")
    if s.fp8 and s.fp8_recipe == "delayed":
        for module in {"moe_act", "layernorm"} & set(chosen):
            why = f"{module} does not go with fp8_recipe delayed"
            yield Fault(key, why, f"remove {module}, or write fp8_recipe: tensorwise")


def _layers_per_stage(s: Any) -> tuple[int, ...]:
    try:
        return layers_per_stage(s)
    except ValueError:
        # `pipeline` says why they do not divide.
        return ()
