"""One layer of each kind instead of all, with its share of what is watched.

All layers of a kind call the same GEMMs: a trace runs one of them and counts it for the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class Watcher(Protocol):
    """Who counts what a layer calls."""

    times: int
    """For how many layers the running one stands."""

    tokens: Literal["n", "k"] | None
    """Which size of the running GEMM varies with the tokens that experts receive."""


@dataclass(frozen=True)
class Thinned:
    """A chunk's layers with each kind once.

    Attributes:
        spec: the kept layers. repeats: for how many of the chunk's layers each of them stands.
        recomputed: how many of the kept layers full recomputation by block takes.
    """

    spec: TransformerBlockSubmodules
    repeats: tuple[int, ...]
    recomputed: int


def thin(spec: TransformerBlockSubmodules, config: TransformerConfig) -> Thinned:
    """Keep the first layer of each kind: same spec, and alike under recomputation."""
    by_block = config.recompute_granularity == "full" and config.recompute_method == "block"
    limit = config.recompute_num_layers if by_block else 0
    kinds: list[tuple[ModuleSpec, bool]] = []
    repeats: list[int] = []
    for number, layer in enumerate(spec.layer_specs):
        kind = (layer, number < limit)
        if kind not in kinds:
            kinds.append(kind)
            repeats.append(0)
        repeats[kinds.index(kind)] += 1
    kept = replace(spec, layer_specs=[layer for layer, _ in kinds])
    return Thinned(kept, tuple(repeats), sum(recomputed for _, recomputed in kinds))


def fit_recomputation(config: TransformerConfig, thinned: Thinned) -> None:
    """Have `config` recompute the kept layers as it would recompute all of them."""
    if config.recompute_granularity == "full":
        by_block = config.recompute_method == "block"
        config.recompute_num_layers = thinned.recomputed if by_block else 1


def count_repeats(layers: Iterable[nn.Module], repeats: Iterable[int], watcher: Watcher) -> None:
    """Set `watcher.times` to a layer's repeats while its forward and its backward run."""
    for layer, times in zip(layers, repeats, strict=True):
        _Repeats(times, watcher).follow(layer)


class _Repeats:
    def __init__(self, times: int, watcher: Watcher) -> None:
        self._times, self._watcher, self._outer = times, watcher, 1

    def follow(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self._enter)
        layer.register_forward_hook(self._leave)

    def _set(self, _: Any = None) -> None:
        self._watcher.times = self._times

    def _enter(self, _: nn.Module, args: Any) -> None:
        self._outer = self._watcher.times
        self._set()

    def _leave(self, _: nn.Module, args: Any, result: Any) -> None:
        self._watcher.times = self._outer
        hidden: Tensor = result[0] if isinstance(result, tuple) else result
        if hidden.requires_grad:
            # Its gradient is complete when everything after the layer has run backward, and
            # nothing of the layer has.
            hidden.register_hook(self._set)
