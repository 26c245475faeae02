"""Megatron's parallel linear layers with every GEMM sent through one interchangeable object.

Weight gradients are added into Megatron's `main_grad` by the GEMM itself where that object can
(what upstream calls gradient accumulation fusion).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, Protocol

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

logger = logging.getLogger(__name__)


class Gemm(Protocol):
    """Who multiplies matrices. `torch_gemm` is the plain one; tuned results bring another."""

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """`a @ b` for 2-D operands, either of which may be a transposed view."""

    def mm_accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """`out += a @ b`, returned; `out` is contiguous and may be float32 where they are not."""

    def varying(self, dimension: Literal["n", "k"]) -> Gemm:
        """The same for products whose size varies with the number of tokens that experts receive.

        Args:
            dimension: in BLAS's terms, "n" where it is the rows of `a`, "k" where it is summed.
        """


class TorchGemm:
    """`Gemm` by `torch.mm`.

    Args:
        into_float32: whether a product of a narrower type is added to float32 by the GEMM itself;
            None: where the device can.
    """

    _into_float32: bool | None = None

    def __init__(self, *, into_float32: bool | None = None) -> None:
        self._into_float32 = into_float32

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """`a @ b`."""
        return torch.mm(a, b)

    def mm_accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """`out += a @ b`, returned."""
        if out.dtype == a.dtype:
            return torch.addmm(out, a, b, out=out)
        wide = self._into_float32
        if wide is None:
            wide = a.is_cuda and out.dtype == torch.float32 and adds_into_float32(a.dtype)
        if wide:
            return torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
        return out.add_(torch.mm(a, b))

    def varying(self, dimension: Literal["n", "k"]) -> Gemm:
        """Itself: `torch.mm` takes any size."""
        return self


@cache
def adds_into_float32(dtype: torch.dtype) -> bool:
    """Whether products of `dtype` are added to float32 by one GEMM on this GPU; says so where not.

    A small product tells, once per process: torch has had this for NVIDIA's GPUs only, and nothing
    but the device itself can say that it is right there.
    """
    if torch.version.hip is not None:
        return False
    # Whoever watches GEMMs must not see this one.
    with _disable_current_modes(), torch.no_grad():
        # 264.5 has more digits than bfloat16.
        a, b = (torch.ones(16, 264, dtype=dtype, device="cuda") for _ in range(2))
        out = torch.full((16, 16), 0.5, device="cuda")
        try:
            torch.addmm(out, a, b.t(), out_dtype=torch.float32, out=out)
            why = "" if bool((out == 264.5).all()) else f"264.5 came out as {out[0, 0].item()}"
        except RuntimeError as error:
            why = str(error).splitlines()[0]
    if why:
        logger.warning("weight gradients of %s are added apart, which is slower: %s", dtype, why)
    return not why


def weight_gradient(
    gemm: Gemm, weight: Tensor, main_grad: Tensor | None, grad: Tensor, rows: Tensor
) -> Tensor:
    """The gradient of a weight (out, in), added into its `main_grad` if it has one.

    Args:
        grad: (tokens, out). rows: (tokens, in). No GEMM library is asked for none of them.

    Returns:
        what autograd is to be given.
    """
    if main_grad is None:
        return gemm.mm(grad.t(), rows) if rows.shape[0] else torch.zeros_like(weight)
    if rows.shape[0]:
        gemm.mm_accumulate(grad.t(), rows, main_grad)
    # Megatron's gradient hook must still fire. It leaves this tensor alone, but for a weight that
    # is also the embedding: that one's gradient is added to this tensor.
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    tied = getattr(weight, "zero_out_wgrad", False)
    return torch.zeros_like(weight) if tied else torch.empty_like(weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, gemm: Gemm) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.gemm, ctx.use_bias = gemm, bias is not None
        ctx.main_grad = getattr(weight, "main_grad", None)
        y = gemm.mm(rows, weight.t())
        if bias is not None:
            y += bias
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Any, None]:
        rows, weight = ctx.saved_tensors
        gemm: Gemm = ctx.gemm
        grad = grads[0]
        drows = dweight = None
        if ctx.needs_input_grad[0]:
            drows = gemm.mm(grad, weight)
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(gemm, weight, ctx.main_grad, grad, rows)
        return drows, dweight, grad.sum(0) if ctx.use_bias else None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gemm: Gemm) -> Tensor:
    """`x @ weight.T + bias` with all three GEMMs of training done by `gemm`.

    Args:
        x: (..., in). weight: (out, in), its `main_grad` receives the gradient if it has one.
    """
    y: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]), weight, bias, gemm
    )
    return y.view(*x.shape[:-1], weight.shape[0])


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, gemm: Gemm, counts: Sequence[int], *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, *weights)
        ctx.gemm, ctx.counts = gemm, counts
        ctx.main_grads = [getattr(weight, "main_grad", None) for weight in weights]
        transposed = [weight.t() for weight in weights]
        return _per_group(rows, transposed, counts, gemm)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        gemm: Gemm = ctx.gemm
        drows = None
        if ctx.needs_input_grad[0]:
            drows = _per_group(grads[0], weights, ctx.counts, gemm)
        parts = zip(
            weights,
            ctx.main_grads,
            grads[0].split(ctx.counts),
            rows.split(ctx.counts),
            strict=True,
        )
        summing = gemm.varying("k")
        return drows, None, None, *(weight_gradient(summing, *part) for part in parts)


def _per_group(
    rows: Tensor, matrices: Sequence[Tensor], counts: Sequence[int], gemm: Gemm
) -> Tensor:
    parts = zip(rows.split(counts), matrices, strict=True)
    gemm = gemm.varying("n")
    # No GEMM library is asked for a product without rows.
    products = [gemm.mm(part, matrix) for part, matrix in parts if part.shape[0]]
    return torch.cat(products) if products else rows.new_empty(0, matrices[0].shape[1])


def grouped_linear(
    rows: Tensor, weights: Sequence[Tensor], counts: Sequence[int], gemm: Gemm
) -> Tensor:
    """`part @ weight.T` for each weight and its part of the rows, in one autograd node.

    Args:
        rows: (tokens, in), the parts one after the other. weights: (out, in) each.
        counts: rows of each part. All may be 0: the exchange between ranks that gave the rows
            still has its backward to do with the others.
    """
    y: Tensor = _GroupedLinear.apply(  # type: ignore[no-untyped-call]
        rows, gemm, counts, *weights
    )
    return y


class ColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """Upstream's layer with our GEMMs; same parameters, same checkpoints."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        if kwargs["sequence_parallel"]:
            input = gather_from_sequence_parallel_region(input, group=self.tp_group)
        elif kwargs["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=self.tp_group)
        return linear(input, weight, kwargs["bias"], self.config.gemm)


class RowParallelLinear(tensor_parallel.RowParallelLinear):
    """Upstream's layer with our GEMMs; same parameters, same checkpoints."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        return linear(input, weight, kwargs["bias"], self.config.gemm)
