"""Pointwise and reduction kernels between the GEMMs, each one compiled pass over memory.

Forward and backward are compiled apart (they run inside `autograd.Function`, without a graph),
which costs less per call than tracing through autograd. Without a C++ compiler they run eagerly.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch.nn import functional as F

logger = logging.getLogger(__name__)

_COMPILERS = ("c++", "g++", "clang++", "icpx")
# From this version on gcc and clang have every instruction set that inductor asks for.
_KNOWS_EVERY_ISA = 12


def compile_or_fall_back(device: torch.device) -> bool:
    """Switch compilation off for this process where a CPU device has no C++ compiler.

    Returns:
        whether kernels are compiled.
    """
    if device.type != "cpu":
        return True
    compiler = next((name for name in _COMPILERS if shutil.which(name)), None)
    if compiler is None:
        torch._dynamo.config.disable = True
        logger.warning("no C++ compiler found: kernels run eagerly, which is slower")
        return False
    if _major_version(compiler) >= _KNOWS_EVERY_ISA:
        # Inductor would compile and run a probe per instruction set: 10 s at the first start.
        inductor_config.cpp.vec_isa_ok = True
    return True


def _major_version(compiler: str) -> int:
    done = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True, check=False)
    major = done.stdout.strip().partition(".")[0]
    return int(major) if major.isdigit() else 0


@torch.compile(dynamic=False)
def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows of `x`, and what each was scaled by, (..., 1) float32; no graph."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * scale).to(x.dtype) * weight, scale


def _rms_norm_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    normed = x.float() * scale
    grad32 = grad.float()
    weighted = grad32 * weight.float()
    dot = (weighted * normed).mean(-1, keepdim=True)
    dx = scale * (weighted - normed * dot)
    dweight = (grad32 * normed).flatten(0, -2).sum(0)
    return dx.to(x.dtype), dweight.to(weight.dtype)


_rms_norm_gradients_alone = torch.compile(_rms_norm_gradients, dynamic=False)


@torch.compile(dynamic=False)
def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x` and `weight`, and the normalised rows once more: all in one pass."""
    dx, dweight = _rms_norm_gradients(grad, x, weight, scale)
    return dx, dweight, (x.float() * scale).to(x.dtype) * weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        dx, dweight = _rms_norm_gradients_alone(grads[0], *ctx.saved_tensors)
        return dx, dweight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension, statistics in float32.

    Args:
        x: (..., hidden). weight: (hidden,).
    """
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


@torch.compile(dynamic=False)
def swiglu(x: Tensor) -> Tensor:
    """`silu(gate) * up` where `x` is (..., 2·ffn) with gate and up side by side; no graph."""
    gate, up = x.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


@torch.compile(dynamic=False)
def swiglu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `x`, and what `swiglu` made of it once more: both in one pass."""
    gate, up = x.chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    dx = torch.cat((grad * up * (sigmoid + silu * (1 - sigmoid)), grad * silu), -1)
    return dx, silu * up


@torch.compile(dynamic=True)
def _scaled_swiglu(x: Tensor, scale: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return (F.silu(gate) * up * scale.unsqueeze(-1)).to(x.dtype)


@torch.compile(dynamic=True)
def _scaled_swiglu_backward(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = x.chunk(2, -1)
    gate, up, grad, wide = gate.float(), up.float(), grad.float(), scale.float().unsqueeze(-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    dgate = grad * wide * up * (sigmoid + silu * (1 - sigmoid))
    dscale = (grad * silu * up).sum(-1)
    return torch.cat((dgate, grad * wide * silu), -1).to(x.dtype), dscale.to(scale.dtype)


class _ScaledSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return _scaled_swiglu(x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return _scaled_swiglu_backward(grads[0], *ctx.saved_tensors)


def scaled_swiglu(x: Tensor, scale: Tensor) -> Tensor:
    """`silu(gate) * up * scale` of as many rows as there happen to be.

    Args:
        x: (rows, 2·ffn), gate and up side by side. scale: (rows,), which may be of a wider type.
    """
    y: Tensor = _ScaledSwiGLU.apply(x, scale)  # type: ignore[no-untyped-call]
    return y


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _rotate_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = (grad * sin).chunk(2, -1)
    return grad * cos + torch.cat((second, -first), -1)


@torch.compile(dynamic=False)
def _split_rotate(
    mixed: Tensor, cos: Tensor, sin: Tensor, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    s, b, groups, _, head = mixed.shape
    cos, sin = cos.view(s, 1, 1, 1, head), sin.view(s, 1, 1, 1, head)
    q = _rotate(mixed[..., :queries, :], cos, sin)
    k = _rotate(mixed[..., queries : queries + 1, :], cos, sin)
    v = mixed[..., queries + 1 :, :]
    return (
        q.to(mixed.dtype).reshape(s, b, groups * queries, head).permute(1, 2, 0, 3).contiguous(),
        k.to(mixed.dtype).reshape(s, b, groups, head).permute(1, 2, 0, 3).contiguous(),
        v.reshape(s, b, groups, head).permute(1, 2, 0, 3).contiguous(),
    )


@torch.compile(dynamic=False)
def _split_rotate_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, queries: int
) -> Tensor:
    b, groups, s, head = dk.shape
    cos, sin = cos.view(s, 1, 1, 1, head), sin.view(s, 1, 1, 1, head)
    dq = dq.permute(2, 0, 1, 3).reshape(s, b, groups, queries, head)
    dk = dk.permute(2, 0, 1, 3).reshape(s, b, groups, 1, head)
    dv = dv.permute(2, 0, 1, 3).reshape(s, b, groups, 1, head)
    dq, dk = _rotate_back(dq, cos, sin).to(dv.dtype), _rotate_back(dk, cos, sin).to(dv.dtype)
    return torch.cat((dq, dk, dv), 3)


class _SplitRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mixed: Tensor, cos: Tensor, sin: Tensor, queries: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.queries = queries
        return _split_rotate(mixed, cos, sin, queries)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        dq, dk, dv = grads
        return _split_rotate_backward(dq, dk, dv, cos, sin, ctx.queries), None, None, None


def split_rotate(
    mixed: Tensor, cos: Tensor, sin: Tensor, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split Megatron's interleaved projection and rotate queries and keys.

    Args:
        mixed: (s, b, groups, queries + 2, head): per group its queries, one key, one value.
        cos, sin: (s, head) float32, halves not interleaved (RoFormer as in GPT-NeoX).
        queries: query heads per group.

    Returns:
        query (b, groups·queries, s, head), key and value (b, groups, s, head).
    """
    q, k, v = _SplitRotate.apply(mixed, cos, sin, queries)  # type: ignore[no-untyped-call]
    return q, k, v


@torch.compile(dynamic=False)
def _latent_heads(
    queries: Tensor,
    keys_values: Tensor,
    rotary_key: Tensor,
    cos: Tensor,
    sin: Tensor,
    plain: int,
    pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    s, b, heads, head = queries.shape
    cos, sin = cos.view(s, 1, 1, -1), sin.view(s, 1, 1, -1)
    rotated = _rotate_pairs(queries[..., plain:], cos, sin).to(queries.dtype)
    shared = _rotate_pairs(rotary_key.view(s, b, 1, -1), cos, sin).to(queries.dtype)
    query = torch.cat((queries[..., :plain], rotated), -1)
    key = torch.cat((keys_values[..., :plain], shared.expand(s, b, heads, -1)), -1)
    value = keys_values[..., plain:]
    if pad:
        value = F.pad(value, (0, head - value.shape[-1]))
    return (
        query.permute(1, 2, 0, 3).contiguous(),
        key.permute(1, 2, 0, 3).contiguous(),
        value.permute(1, 2, 0, 3).contiguous(),
    )


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _rotate_pairs_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = grad.chunk(2, -1)
    pairs = torch.stack((first * cos + second * sin, second * cos - first * sin), -1)
    return pairs.flatten(-2)


@torch.compile(dynamic=False)
def _latent_heads_backward(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, plain: int, values: int
) -> tuple[Tensor, Tensor, Tensor]:
    s = dq.shape[2]
    cos, sin = cos.view(s, 1, 1, -1), sin.view(s, 1, 1, -1)
    dq, dk, dv = (grad.permute(2, 0, 1, 3) for grad in (dq, dk, dv))
    rotated = _rotate_pairs_back(dq[..., plain:], cos, sin).to(dq.dtype)
    shared = _rotate_pairs_back(dk[..., plain:].float().sum(2, keepdim=True), cos, sin)
    return (
        torch.cat((dq[..., :plain], rotated), -1),
        torch.cat((dk[..., :plain], dv[..., :values]), -1),
        shared.squeeze(2).to(dk.dtype),
    )


class _LatentHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys_values: Tensor,
        rotary_key: Tensor,
        cos: Tensor,
        sin: Tensor,
        plain: int,
        pad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.plain, ctx.values = plain, keys_values.shape[-1] - plain
        return _latent_heads(queries, keys_values, rotary_key, cos, sin, plain, pad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        (dq, dk, dv), (cos, sin) = grads, ctx.saved_tensors
        back = _latent_heads_backward(dq, dk, dv, cos, sin, ctx.plain, ctx.values)
        return *back, None, None, None, None


def latent_heads(
    queries: Tensor,
    keys_values: Tensor,
    rotary_key: Tensor,
    cos: Tensor,
    sin: Tensor,
    plain: int,
    *,
    pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of multi-latent attention from its projections, with the rotary parts rotated.

    Args:
        queries: (s, b, heads, plain + rotary). keys_values: (s, b, heads, plain + value).
        rotary_key: (s, b, rotary), the same for all heads.
        cos, sin: (s, rotary / 2) float32; neighbouring elements are one pair, as in DeepSeek's
            own code. The rotated parts come out as two halves, which no product of them sees.
        plain: size of the part that is not rotated.
        pad: whether values end in zeros, for attention that wants one size of head.

    Returns:
        query, key (b, heads, s, plain + rotary); value (b, heads, s, value), or as they are.
    """
    q, k, v = _LatentHeads.apply(  # type: ignore[no-untyped-call]
        queries, keys_values, rotary_key, cos, sin, plain, pad
    )
    return q, k, v


@torch.compile(dynamic=False)
def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits.float()
    lse = torch.logsumexp(wide, -1)
    picked = wide.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return lse - picked, lse


@torch.compile(dynamic=False)
def _scale_softmax(grad: Tensor, logits: Tensor, lse: Tensor) -> None:
    logits.copy_(torch.exp(logits.float() - lse.unsqueeze(-1)) * grad.unsqueeze(-1))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        loss, lse = _cross_entropy(logits, labels)
        ctx.save_for_backward(logits, labels, lse, loss)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out, labels, lse, loss = ctx.saved_tensors
        # In place of the logits: they are the largest tensor of a step, here at its peak.
        _scale_softmax(grads[0], out, lse)
        # One number per row: cheaper apart than as a comparison with every column, and not by
        # `scatter_`, which takes a float32 copy of all of a bfloat16 tensor.
        rows = torch.arange(labels.shape[0], device=labels.device)
        out[rows, labels] = (torch.expm1(-loss) * grads[0]).to(out.dtype)
        return out, None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy per position, in float32 whatever the dtype of the logits.

    Backward writes the gradient over the logits.

    Args:
        logits: (tokens, vocabulary), all of the vocabulary on this rank. labels: (tokens,) int64.

    Returns:
        (tokens,) float32, nats.
    """
    loss: Tensor = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return loss
