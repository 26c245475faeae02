"""Which layers hold experts: `moe_layer_freq`, read without evaluating it."""

from __future__ import annotations

import re
from typing import Any

_TERM = re.compile(r"\[([01](?:,[01])*)\](?:\*(\d+))?")


def parse_pattern(pattern: str) -> tuple[bool, ...]:
    """The layers that a pattern such as `([0]*3+[1]*58)` lists, in order.

    Raises:
        ValueError: it is not a sum of such terms.
    """
    layers: list[bool] = []
    for term in pattern.strip("()").split("+"):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(f"{pattern!r}: {term!r} is not a term like [0,1]*2")
        layers += [digit == "1" for digit in match[1].split(",")] * int(match[2] or 1)
    return tuple(layers)


def expert_layers(settings: Any) -> tuple[bool, ...]:
    """Whether each of the `num_layers` layers has experts; the layers of mtp are not among them.

    Args:
        settings: has `num_layers`, `num_experts` and `moe_layer_freq`. A number n there means
            the first layer and every n-th after it, as in Megatron.

    Raises:
        ValueError: the pattern lists another number of layers.
    """
    count, frequency = int(settings.num_layers), settings.moe_layer_freq
    if settings.num_experts is None:
        return (False,) * count
    if isinstance(frequency, int):
        return tuple(layer % frequency == 0 for layer in range(count))
    layers = parse_pattern(frequency)
    if len(layers) != count:
        raise ValueError(f"moe_layer_freq lists {len(layers)} layers, num_layers is {count}")
    return layers
