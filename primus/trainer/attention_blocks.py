"""Causal attention on a CPU: batched matrix products over blocks of queries.

torch's own kernel for CPUs computes the scores once more in the backward pass, from products too
small for the library of matrix products. Here one product covers all heads and all keys that a
block of queries may see, and the probabilities may stay in memory, which short sequences allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from primus.config.kept_scores import BLOCK, blocks, faster_in_blocks, scores_per_head


def serves(like: Tensor, positions: int) -> bool:
    """Whether these blocks are the faster way for operands like this one.

    With AMX torch's own kernel computes in tiles, and was the faster one.
    """
    return (
        like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.bfloat16)
        and faster_in_blocks(positions, float32=like.dtype == torch.float32)
        and not torch.cpu._is_amx_tile_supported()
    )


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, keep: bool = True
) -> Tensor:
    """Causal scaled dot-product attention; all operands in one dtype.

    Args:
        query: (b, heads, s, head). key: (b, groups, s, head). value: (b, groups, s, value head);
            heads is a multiple of groups.
        scale: of the scores. They are rounded to the operands' dtype once.
        keep: probabilities until the backward pass, which else computes them again.

    Returns:
        (b, heads, s, value head).
    """
    out: Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, scale, keep
    )
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, keep: bool
    ) -> Tensor:
        out: Tensor
        out, kept = _forward(query, key, value, scale, keep)
        ctx.save_for_backward(query, key, value, kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *_backward(grads[0], *ctx.saved_tensors, ctx.scale), None, None


# Operators of their own, so that who watches GEMMs sees as little of them as of a fused kernel.
@torch.library.custom_op("primus::block_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """The attention's output, and the probabilities of all blocks one after the other, or none.

    The output lies in memory as (s, b, heads, value head), which is what the next layer reads.
    """
    out, kept = _output(query, value), _kept(query, keep)
    scores = _Scores(query, key, scale)
    v, by_group = value.flatten(0, 1), out.view(*scores.queries.shape[:3], -1)
    for (start, stop), room in scores.blocks(kept):
        rows = torch.bmm(scores.probabilities(start, stop, room), v[:, :stop])
        by_group[:, :, start:stop] = rows.view(*by_group.shape[:2], stop - start, -1)
    return out, kept


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, keep: bool) -> tuple[Tensor, Tensor]:
    return _output(query, value), _kept(query, keep)


def _kept(query: Tensor, keep: bool) -> Tensor:
    b, heads, s, _ = query.shape
    return query.new_empty(b * heads * scores_per_head(s) if keep else 0)


def _output(query: Tensor, value: Tensor) -> Tensor:
    b, heads, s, _ = query.shape
    return query.new_empty(s, b, heads, value.shape[-1]).permute(1, 2, 0, 3)


@torch.library.custom_op("primus::block_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    scores = _Scores(query, key, scale)
    q, k, v = scores.queries, scores.keys, value.flatten(0, 1)
    grad, dq = _by_group(grad, key.shape[1]), torch.empty_like(q, memory_format=_CONTIGUOUS)
    dk, dv = _Sum(k), _Sum(v)
    for (start, stop), room in scores.blocks(kept):
        known = kept.numel() > 0
        probabilities = room if known else scores.probabilities(start, stop, room)
        drows = _rows(grad, start, stop)
        dv.add(torch.bmm(probabilities.transpose(1, 2), drows))
        dprobabilities = torch.bmm(drows, _seen(v, stop).transpose(1, 2))
        dscores = torch._softmax_backward_data(dprobabilities, probabilities, -1, q.dtype)
        dk.add(_product(dscores.transpose(1, 2), _rows(q, start, stop), scale))
        rows = _product(dscores, k[:, :stop], scale)
        dq[:, :, start:stop] = rows.view(*q.shape[:2], stop - start, -1)
    return dq.view(query.shape), dk.total.view(key.shape), dv.total.view(value.shape)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x).contiguous() for x in (query, key, value))  # type: ignore[return-value]


class _Sum:
    """A sum, in float32, of parts that cover the first positions."""

    def __init__(self, like: Tensor) -> None:
        self._dtype = like.dtype
        self._sum = torch.zeros(like.shape, dtype=torch.float32)

    def add(self, part: Tensor) -> None:
        self._sum[:, : part.shape[1]] += part

    @property
    def total(self) -> Tensor:
        return self._sum.to(self._dtype)


class _Scores:
    """Scores of a sequence by blocks of queries, all heads of a group of them in one product."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.queries, self.keys = _by_group(query, key.shape[1]), key.flatten(0, 1)
        self._scale, self._later = scale, _later(query.dtype)

    def blocks(self, kept: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Each block with room for its probabilities, (batches, queries · block, keys it sees).

        Args:
            kept: where they are one after the other; of no size: there is one room for all.
        """
        batches, queries, s, _ = self.queries.shape
        largest = batches * queries * min(BLOCK, s) * s
        room = kept if kept.numel() else self.queries.new_empty(largest)
        at = 0
        for start, stop in blocks(s):
            rows = queries * (stop - start)
            size = batches * rows * stop
            yield (start, stop), room[at : at + size].view(batches, rows, stop)
            at += size if kept.numel() else 0

    def probabilities(self, start: int, stop: int, room: Tensor) -> Tensor:
        """Those of one block, written into `room`."""
        q, k = _rows(self.queries, start, stop), _seen(self.keys, stop)
        scores = _product(q, k.transpose(1, 2), self._scale)
        diagonal = scores.view(*self.queries.shape[:2], stop - start, stop)[..., start:]
        diagonal += self._later[: stop - start, : stop - start]
        return torch.softmax(scores, -1, out=room)


@cache
def _later(dtype: torch.dtype) -> Tensor:
    """Added to the scores of later keys: filled in by a mask it takes four times as long."""
    return torch.full((BLOCK, BLOCK), -math.inf, dtype=dtype).triu(1)


_CONTIGUOUS = torch.contiguous_format


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(b, heads, s, head) → (b · groups, queries of a group, s, head)."""
    b, heads, s, head = x.shape
    return x.reshape(b * groups, heads // groups, s, head)


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    return x[:, :, start:stop].flatten(1, 2)


def _seen(x: Tensor, stop: int) -> Tensor:
    """The first rows of each matrix, of which a product is to take the transposed ones.

    oneDNN takes a copy of operands with gaps, row by row; of a transposed one that is slow.
    """
    rows = x[:, :stop]
    return rows if x.dtype == torch.float32 else rows.contiguous()


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
