"""What follows from a sound model and layout: its number of parameters, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config import memory
from primus.config.checks.fault import Context, Fault
from primus.config.layout import layout
from primus.config.parameters import parameters


def published(s: Any, _: Context) -> Iterator[Fault]:
    """The architecture gives the number of parameters that was published with it."""
    found = parameters(s).total
    if s.published_parameters not in (None, found):
        why = f"the architecture gives {found} parameters, {found - s.published_parameters:+d}"
        yield Fault("published_parameters", why, "correct the dimensions, or this number")


def device_memory(s: Any, context: Context) -> Iterator[Fault]:
    """Refuse what cannot fit even without a single activation."""
    here = s.device_memory_gib is None and s.platform == "cpu" and "train" in context.stages
    limit = memory.this_machine_gib() / s.nproc_per_node if here else s.device_memory_gib
    if limit is None:
        return
    need = memory.least_gib_per_rank(s)
    if need > limit:
        place = "each rank on this machine" if here else f"a device of {s.hardware}"
        yield Fault(
            "device_memory_gib",
            f"weights, gradients and optimizer of {parameters(s).total / 1e9:.2f}e9 parameters "
            f"take at least {need:.1f} GiB per rank at TP {s.tensor_model_parallel_size}, PP "
            f"{s.pipeline_model_parallel_size}, DP {layout(s).data}; {place} has {limit:.4g}",
            "raise tensor_model_parallel_size, pipeline_model_parallel_size or nodes"
            + (", name other hardware, or write the memory of the nodes" if here else ""),
        )
