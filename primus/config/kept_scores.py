"""Attention in blocks of queries, on a CPU: where it serves, and which scores it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Queries of one product: more waste products above the diagonal, fewer make small products.
BLOCK = 128
# Positions from which the scores, which grow with their square, are too large to keep.
LONGEST = 2048


def in_blocks(s: Any) -> bool:
    """Whether training computes its attention in blocks; without AMX, which is not asked for."""
    fused = s.platform != "cpu" or s.context_parallel_size > 1 or s.attention_dropout > 0
    return not fused and not s.fp16 and faster_in_blocks(s.seq_length, float32=not s.bf16)


def faster_in_blocks(positions: int, *, float32: bool) -> bool:
    """Whether blocks are faster than torch's kernel, also where they compute scores twice."""
    return not float32 or positions <= LONGEST


def kept_scores(s: Any) -> int:
    """Scores that each head keeps of one sequence; 0 where attention keeps none."""
    return scores_per_head(s.seq_length) if in_blocks(s) and keeps_scores(s, s.seq_length) else 0


def keeps_scores(s: Any, positions: int) -> bool:
    """Whether blocks keep their scores, else they compute them again in the backward pass.

    Args:
        s: settings, or Megatron's own configuration: the keys have the same names.
    """
    dropped = s.recompute_granularity == "selective" and "core_attn" in s.recompute_modules
    return positions <= LONGEST and not dropped


def scores_per_head(positions: int) -> int:
    """Numbers in the blocks of a sequence of so many positions."""
    return sum((stop - start) * stop for start, stop in blocks(positions))


def blocks(positions: int) -> Iterator[tuple[int, int]]:
    """First query and end of each block, whose queries see all keys before that end."""
    return ((start, min(start + BLOCK, positions)) for start in range(0, positions, BLOCK))
