"""Where a loss or gradient that is not finite comes from: after the sum over ranks all have it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from megatron.core import parallel_state
from torch import Tensor, distributed

# In a message: enough to find the batch again, and still a line.
_RANKS, _IDS = 8, 64

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class _Own:
    """What one rank knows of its share of the iteration.

    Attributes:
        bad: its micro-batches whose loss is not finite.
        gradients: whether its gradients were finite before the sum; None: not known.
    """

    rank: int
    node: str
    replica: int
    ids: list[list[int]]
    bad: list[int]
    gradients: bool | None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where it comes from.

    Attributes:
        ranks: whose own numbers were not finite; of ranks that share a loss the one that holds it.
        everywhere: every one of several data-parallel ranks is among them.
        known: whether ranks knew their own numbers.
        sample_ids: of the micro-batches concerned.
    """

    ranks: list[int]
    nodes: list[str]
    everywhere: bool
    known: bool
    sample_ids: list[int]

    def __str__(self) -> str:
        ids = f"sample ids {listed(self.sample_ids, _IDS)}"
        if not self.known:
            return f"on a rank that is not known: FSDP2 sums gradients as they come; {ids}"
        if not self.ranks:
            return f"on no rank alone, but in their sum or its norm; {ids}"
        if self.everywhere:
            return f"on every data-parallel rank, so perhaps in the weights; {ids}"
        word = "rank" if len(self.ranks) == 1 else "ranks"
        return f"on {word} {listed(self.ranks, _RANKS)} ({listed(self.nodes, _RANKS)}); {ids}"


def listed(items: Sequence[object], most: int) -> str:
    """Some of the items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def origin(losses: Tensor, *, gradients: bool | None, ids: list[list[int]]) -> Origin:
    """Ask all ranks; collective.

    Args:
        losses: of this rank's micro-batches, (n, …); n is 0 on a rank that holds no loss.
        gradients: whether this rank's own are finite; None: not known.
        ids: the samples of its micro-batches.
    """
    own = _Own(
        rank=distributed.get_rank(),
        node=os.uname().nodename,
        replica=parallel_state.get_data_parallel_rank(),
        ids=ids,
        bad=[n for n, loss in enumerate(losses.tolist()) if not all(map(math.isfinite, loss))],
        gradients=gradients,
    )
    told: list[_Own | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(told, own)
    return _judged([one for one in told if one is not None])


def _judged(told: list[_Own]) -> Origin:
    # A loss that is not finite makes such gradients, also on ranks that hold no loss.
    found = [one for one in told if one.bad] or [one for one in told if one.gradients is False]
    pieces = [
        batch
        for one in found or told
        for number, batch in enumerate(one.ids)
        if not one.bad or number in one.bad
    ]
    replicas = {one.replica for one in told}
    return Origin(
        ranks=[one.rank for one in found],
        nodes=_distinct(one.node for one in found),
        everywhere=1 < len(replicas) == len({one.replica for one in found}),
        known=bool(found) or all(one.gradients is not None for one in told),
        sample_ids=_distinct(sample for batch in pieces for sample in batch),
    )


def _distinct(items: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(items))
