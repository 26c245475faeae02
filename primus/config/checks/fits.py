"""What follows from a sound model and layout: its number of parameters, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from primus.config import memory
from primus.config.checks.fault import Context, Fault
from primus.config.checks.partial import Partial
from primus.config.checks.rules import LAYOUT, broken
from primus.config.layout import layout
from primus.config.parameters import parameters
from primus.config.propose import propose


def published(s: Any, _: Context) -> Iterator[Fault]:
    """The architecture gives the number of parameters that was published with it."""
    found = parameters(s).total
    if s.published_parameters not in (None, found):
        why = f"the architecture gives {found} parameters, {found - s.published_parameters:+d}"
        yield Fault("published_parameters", why, "correct the dimensions, or this number")


def device_memory(s: Any, context: Context) -> Iterator[Fault]:
    """Weights, gradients, optimizer and activations of the fullest stage fit into a device."""
    here = s.device_memory_gib is None and s.platform == "cpu" and "train" in context.stages
    limit = memory.this_machine_gib() / s.nproc_per_node if here else s.device_memory_gib
    if limit is None:
        return
    need = memory.fullest(s).gib
    if need["total"] <= limit:
        return
    place = "each rank on this machine" if here else f"a device of {s.hardware}"
    parts = ", ".join(f"{name} {size:.1f}" for name, size in need.items() if name != "total")
    why = (
        f"{parameters(s).total / 1e9:.2f}e9 parameters at {layout(s)} take {need['total']:.1f} GiB "
        f"per rank ({parts}); {place} has {limit:.4g}"
    )
    yield Fault("device_memory_gib", why, _fix(s, context, limit, here))


def _fix(s: Any, context: Context, limit: float, here: bool) -> str:
    """The nearest layout that fits, in words."""
    other = "name other hardware"
    if isinstance(s, Partial):
        return (
            f"raise tensor_model_parallel_size, pipeline_model_parallel_size or nodes, or {other}"
        )
    if here:
        other += ", or write the memory of the nodes"
    change = propose(
        s, limit, lambda tried: not broken(LAYOUT, tried, context), more_nodes=not here
    )
    if change is None:
        return f"no layout fits; {other}"
    words = ", ".join(f"{key}: {_shown(value)}" for key, value in change.items())
    need = memory.fullest(s.model_copy(update=change)).gib["total"]
    return f"write {words} ({need:.1f} GiB), or {other}"


def _shown(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
