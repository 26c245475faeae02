"""A layout that fits, near to one that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import log2
from typing import Any

from primus.config import memory
from primus.config.estimate import stage_flops
from primus.config.layout import layout

# Nodes are doubled up to this factor.
MOST_NODES = 64
# Time that each doubling of tensor, context or expert parallelism is taken to cost; for experts
# beyond one node three times as much. It ranks proposals, nothing else: not a measurement.
TALK = 0.04
# A proposal leaves some of the device free: counted memory is right within a few percent.
FILLED = 0.95
# A changed key weighs as much as this share of a step.
CHANGE = 0.04
# Context parallelism leaves each rank at least this much of a sequence.
LEAST_TOKENS = 4096

Change = dict[str, Any]
_NO_ENDS: Change = {
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "virtual_pipeline_model_parallel_size": None,
}
_FULL: Change = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}


def propose(
    s: Any, limit_gib: float, legal: Callable[[Any], bool], *, more_nodes: bool = True
) -> Change | None:
    """The keys to change so that the job fits; None where nothing was found.

    Fewest nodes first; among these the layout with the least work, waiting and talk between ranks
    and the fewest changes. What a proposal keeps: the model, the batch, the hardware.

    Args:
        legal: whether a layout is possible at all.
        more_nodes: whether the job may take more of them.
    """
    nodes = s.nodes
    while nodes <= s.nodes * (MOST_NODES if more_nodes else 1):
        tried = [(change, s.model_copy(update=change)) for change in _changes(s, nodes)]
        possible = [(change, other) for change, other in tried if legal(other)]
        possible.sort(key=lambda pair: _slowness(pair[1]) * (1 + CHANGE * len(pair[0])))
        for change, other in possible:
            if memory.fullest(other).total <= limit_gib * memory.GIB * FILLED:
                return change
        nodes *= 2
    return None


def _changes(s: Any, nodes: int) -> Iterator[Change]:
    """Every combination, as the keys in which it differs from the settings."""
    world = nodes * s.nproc_per_node
    tensors = [size for size in _powers(s.nproc_per_node) if s.num_attention_heads % size == 0]
    pipelines = [size for size in _powers(world) if size <= s.num_layers]
    contexts = {s.context_parallel_size, *_powers(s.seq_length // LEAST_TOKENS)}
    experts = [1] if s.num_experts is None else _powers(min(world, s.num_experts))
    micro = sorted({1, s.micro_batch_size})
    for tp, pp, cp, ep in product(tensors, pipelines, sorted(contexts), experts):
        if world % (tp * pp * cp):
            continue
        ranks = _ranks(s, nodes, tp, pp, cp, ep)
        for batch, again, sharded in product(micro, (False, True), {False, s.use_torch_fsdp2}):
            wanted = ranks | {"micro_batch_size": batch, "use_torch_fsdp2": sharded}
            wanted |= {"use_distributed_optimizer": not sharded}
            wanted |= _FULL if again else {}
            yield {key: value for key, value in wanted.items() if getattr(s, key) != value}


def _ranks(s: Any, nodes: int, tp: int, pp: int, cp: int, ep: int) -> Change:
    wanted: Change = {
        "nodes": nodes,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": cp,
        "expert_model_parallel_size": ep,
        "sequence_parallel": tp > 1,
    }
    if s.num_experts is not None and tp > 1:
        wanted["expert_tensor_parallel_size"] = 1
    if pp != s.pipeline_model_parallel_size:
        wanted |= _NO_ENDS | uneven(s.num_layers, pp)
    return wanted


def uneven(layers: int, stages: int) -> Change:
    """A shorter last stage, where the layers do not divide evenly."""
    if layers % stages == 0:
        return {}
    last = layers - -(-layers // stages) * (stages - 1)
    return {"decoder_last_pipeline_num_layers": last} if last > 0 else {}


def _slowness(s: Any) -> float:
    """Relative time of a step: the slowest stage's work, the wait for the pipeline, the talk."""
    share = layout(s)
    batches = s.global_batch_size / (s.micro_batch_size * share.data)
    waiting = (batches + (share.pipeline - 1) / share.virtual) / batches
    talk = TALK * log2(share.tensor * share.context)
    talk += TALK * log2(share.expert) + 2 * TALK * log2(max(1, share.expert / s.nproc_per_node))
    return float(max(stage_flops(s)) * share.pipeline * waiting * (1 + talk))


def _powers(most: int) -> list[int]:
    """1, 2, 4, … up to `most`."""
    return [2**exponent for exponent in range(most.bit_length()) if 2**exponent <= most]
