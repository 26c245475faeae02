"""Causal attention on a CPU: batched matrix products over blocks of queries, scores kept.

torch's own kernel for CPUs computes the scores once more in the backward pass, from products too
small for the library of matrix products. Here one product covers all heads and all keys that a
block of queries may see, and the probabilities stay in memory, which short sequences allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from primus.config.kept_scores import BLOCK, LONGEST, blocks, scores_per_head


def serves(like: Tensor, positions: int) -> bool:
    """Whether these blocks are the faster way for operands like this one.

    With AMX torch's own kernel computes in tiles, and was the faster one.
    """
    return (
        like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.bfloat16)
        and positions <= LONGEST
        and not torch.cpu._is_amx_tile_supported()
    )


def block_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal scaled dot-product attention; all operands in one dtype.

    Args:
        query: (b, heads, s, head). key: (b, groups, s, head). value: (b, groups, s, value head);
            heads is a multiple of groups.
        scale: of the scores. They are rounded to the operands' dtype once.

    Returns:
        (b, heads, s, value head).
    """
    out: Tensor = _BlockAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out: Tensor
        out, kept = _forward(query, key, value, scale)
        ctx.save_for_backward(query, key, value, kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *_backward(grads[0], *ctx.saved_tensors, ctx.scale), None


# Operators of their own, so that who watches GEMMs sees as little of them as of a fused kernel.
@torch.library.custom_op("primus::block_attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The attention's output, and the probabilities of all blocks one after the other."""
    (b, heads, s, _), groups = query.shape, key.shape[1]
    q, k, v = _by_group(query, groups), key.flatten(0, 1), value.flatten(0, 1)
    out = query.new_empty(b * groups, heads // groups, s, value.shape[-1])
    kept = query.new_empty(b * heads * scores_per_head(s))
    # Added: as a mask to fill by it takes four times as long.
    later = query.new_full((BLOCK, BLOCK), -math.inf).triu(1)
    for (start, stop), probabilities in _kept_blocks(kept, b * groups, heads // groups, s):
        scores = _product(_rows(q, start, stop), _seen(k, stop).transpose(1, 2), scale)
        diagonal = scores.view(*q.shape[:2], stop - start, stop)[..., start:]
        diagonal += later[: stop - start, : stop - start]
        torch.softmax(scores, -1, out=probabilities)
        rows = torch.bmm(probabilities, v[:, :stop])
        out[:, :, start:stop] = rows.view(*out.shape[:2], stop - start, -1)
    return out.view(b, heads, s, -1), kept


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    b, heads, s, _ = query.shape
    kept = query.new_empty(b * heads * scores_per_head(s))
    return query.new_empty(b, heads, s, value.shape[-1]), kept


@torch.library.custom_op("primus::block_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    (b, heads, s, _), groups = query.shape, key.shape[1]
    q, k, v = _by_group(query, groups), key.flatten(0, 1), value.flatten(0, 1)
    grad, dq = _by_group(grad, groups), torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = _Sum(k), _Sum(v)
    for (start, stop), probabilities in _kept_blocks(kept, b * groups, heads // groups, s):
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


def _kept_blocks(
    kept: Tensor, batches: int, queries: int, s: int
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each block with its probabilities, (batches, queries · block, keys that it sees)."""
    at = 0
    for start, stop in blocks(s):
        rows = queries * (stop - start)
        size = batches * rows * stop
        yield (start, stop), kept[at : at + size].view(batches, rows, stop)
        at += size


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
