"""Scores of attention that training on a CPU keeps in memory: which, and how many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Queries of one product: more waste products above the diagonal, fewer make small products.
BLOCK = 128
# Positions from which the scores, which grow with their square, are too large to keep.
LONGEST = 2048


def kept_scores(s: Any) -> int:
    """Scores that each head keeps of one sequence; 0 where attention never writes them."""
    fused = s.platform != "cpu" or s.context_parallel_size > 1 or s.attention_dropout > 0
    if fused or s.fp16 or s.seq_length > LONGEST or drops_scores(s):
        return 0
    return scores_per_head(s.seq_length)


def drops_scores(s: Any) -> bool:
    """Whether selective recomputation was asked to keep nothing of attention.

    Args:
        s: settings, or Megatron's own configuration: the keys have the same names.
    """
    return s.recompute_granularity == "selective" and "core_attn" in s.recompute_modules


def scores_per_head(positions: int) -> int:
    """Numbers in the blocks of a sequence of so many positions."""
    return sum((stop - start) * stop for start, stop in blocks(positions))


def blocks(positions: int) -> Iterator[tuple[int, int]]:
    """First query and end of each block, whose queries see all keys before that end."""
    return ((start, min(start + BLOCK, positions)) for start in range(0, positions, BLOCK))
