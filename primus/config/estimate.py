"""Expected time of a step, and what follows from it: an estimate, with what it assumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from primus.config.activations import micro_batches
from primus.config.flops import (
    flops_per_token,
    layer_flops,
    module_flops,
    output_flops,
    prediction_flops,
)
from primus.config.layer_pattern import expert_layers
from primus.config.layout import layers_of_stages, layout
from primus.config.parameters import parameters

# Share of the measured GEMM peak that a whole step reaches, pipeline bubbles and recomputation
# apart, communication and everything that is no GEMM included. Dense: Megatron-LM reports 41 to
# 48 % of H100's 989 TFLOP/s, which is 51 to 60 % of the 795 measured. With experts: an assumption
# below that, for smaller GEMMs and for the tokens sent between ranks. Nothing here is measured on
# this trainer.
EFFICIENCY_DENSE = 0.55
EFFICIENCY_EXPERTS = 0.35


@dataclass(frozen=True)
class Estimate:
    """What one run costs.

    Attributes:
        efficiency: the assumed share of `peak_tflops`.
        bubble: share of the time in which a rank waits for the pipeline.
        recomputed: FLOPs of recomputation per model FLOP.
        gpu_hours: of all train_iters, without validation and checkpoints.
    """

    efficiency: float
    peak_tflops: float
    bubble: float
    recomputed: float
    seconds_per_step: float
    tokens_per_second: float
    tflops_per_rank: float
    gpu_hours: float


def tokens_per_step(s: Any) -> int:
    """Tokens of one iteration."""
    return int(s.global_batch_size * s.seq_length)


def checkpoint_bytes(s: Any) -> int:
    """Size of one checkpoint: weights, Adam's two moments, and float32 weights besides others.

    The sharded optimizer writes its float32 weights also where the weights are float32.
    """
    counted = parameters(s)
    each = 4 + 8
    if not s.use_torch_fsdp2:
        half = s.bf16 or s.fp16
        each = 2 + 12 if half else each + 4 * s.use_distributed_optimizer
    return (counted.total + counted.multi_token_prediction) * each


def estimate(s: Any, efficiency: float | None = None) -> Estimate | None:
    """The time of a step from the hardware's measured peak; None where no peak is known.

    A pipeline of p stages with v chunks each takes m + (p - 1) / v times as long as the slowest
    stage takes for one of m micro batches (Narayanan et al., arXiv:2104.04473, section 2.2).
    Recomputed layers pay their forward pass twice.
    """
    peak = peak_tflops(s)
    if peak is None:
        return None
    if efficiency is None:
        efficiency = EFFICIENCY_DENSE if s.num_experts is None else EFFICIENCY_EXPERTS
    share, batches = layout(s), micro_batches(s)
    steps = batches + (share.pipeline - 1) / share.virtual
    tokens = s.seq_length * s.micro_batch_size / (share.tensor * share.context)
    speed = peak * 1e12 * efficiency
    seconds = steps * max(stage_flops(s)) * tokens / speed
    per_second = tokens_per_step(s) / seconds
    return Estimate(
        efficiency=efficiency,
        peak_tflops=peak,
        bubble=1 - batches / steps,
        recomputed=sum(stage_flops(s)) / flops_per_token(s) - 1,
        seconds_per_step=seconds,
        tokens_per_second=per_second,
        tflops_per_rank=per_second * flops_per_token(s) / share.world / 1e12,
        gpu_hours=seconds * s.train_iters * share.world / 3600,
    )


def peak_tflops(s: Any) -> float | None:
    """Measured peak of the type in which GEMMs run."""
    peak = s.peak_tflops
    if s.fp8 and peak.fp8:
        return float(peak.fp8)
    found = peak.bf16 if s.bf16 or s.fp16 or s.fp8 else peak.fp32
    return None if found is None else float(found)


def stage_flops(s: Any) -> list[float]:
    """FLOPs of each pipeline stage for one token, recomputation included.

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    pattern, chunks = expert_layers(s), layout(s).virtual
    once = {kind: layer_flops(s, kind) for kind in set(pattern)}
    again = {kind: _recomputed(s, kind) for kind in set(pattern)}
    found = []
    for held in layers_of_stages(s):
        total, chunk = 0.0, len(held) // chunks
        for number, layer in enumerate(held):
            total += once[pattern[layer]]
            if s.recompute_method != "block" or number % chunk < s.recompute_num_layers:
                total += again[pattern[layer]]
        found.append(total)
    found[-1] += output_flops(s) + (s.mtp_num_layers or 0) * prediction_flops(s)
    return found


def _recomputed(s: Any, kind: bool) -> float:
    """FLOPs that a recomputed layer adds for one token; a forward pass is a third of its work."""
    if s.recompute_granularity == "full":
        return layer_flops(s, kind) / 3
    if s.recompute_granularity == "selective":
        return sum(module_flops(s, kind, module) for module in s.recompute_modules)
    return 0.0
