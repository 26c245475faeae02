"""RMSNorm and the linear layer after it as one node, which keeps only what goes into the norm."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, distributed, nn

from primus.trainer.kernels import rms_norm_backward, rms_norm_forward
from primus.trainer.linear import ColumnParallelLinear, Gemm, weight_gradient


class TensorParallel:
    """What tensor-parallel ranks exchange around a product that each does for its own columns.

    Args:
        sequence_parallel: each rank has its part of the rows, else all ranks have all rows.
    """

    def __init__(self, group: distributed.ProcessGroup, *, sequence_parallel: bool) -> None:
        self._group, self._parts = group, sequence_parallel

    def all_rows(self, rows: Tensor) -> Tensor:
        """(own tokens, in) → (tokens, in)."""
        if not self._parts:
            return rows
        gathered: Tensor = gather_from_sequence_parallel_region(rows, group=self._group)
        return gathered

    def sum_of_own(self, rows: Tensor) -> Tensor:
        """(tokens, in) of every rank → their sum, (own tokens, in)."""
        summed: Tensor
        if self._parts:
            summed = reduce_scatter_to_sequence_parallel_region(rows, group=self._group)
        else:
            summed = reduce_from_tensor_model_parallel_region(rows, group=self._group)
        return summed


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        gemm: Gemm,
        ranks: TensorParallel,
    ) -> Tensor:
        rows, scale = rms_norm_forward(x, norm, eps)
        ctx.save_for_backward(x, norm, scale, weight)
        ctx.gemm, ctx.ranks, ctx.use_bias = gemm, ranks, bias is not None
        ctx.main_grad = getattr(weight, "main_grad", None)
        y = gemm.mm(ranks.all_rows(rows), weight.t())
        if bias is not None:
            y += bias
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, norm, scale, weight = ctx.saved_tensors
        grad, ranks = grads[0], ctx.ranks
        drows = ranks.sum_of_own(ctx.gemm.mm(grad, weight))
        dx, dnorm, rows = rms_norm_backward(drows, x, norm, scale)
        dweight = None
        if ctx.needs_input_grad[2]:
            rows = ranks.all_rows(rows)
            dweight = weight_gradient(ctx.gemm, weight, ctx.main_grad, grad, rows)
        dbias = grad.sum(0) if ctx.use_bias else None
        return dx, dnorm, dweight, dbias, None, None, None


def norm_linear(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    gemm: Gemm,
    ranks: TensorParallel,
) -> Tensor:
    """`rms_norm(x) @ weight.T + bias`; backward makes the normalised rows again.

    They come out of the pass that makes the gradient of `x`.

    Args:
        x: (..., in). norm: (in,). weight: (out of this rank, in), its `main_grad` receives the
            gradient if it has one.
    """
    y: Tensor = _NormLinear.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]), norm, weight, bias, eps, gemm, ranks
    )
    return y.view(-1, *x.shape[1:-1], weight.shape[0])


class NormColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm and the layer after it, with the parameter names of transformer-engine's."""

    def __init__(self, input_size: int, *args: Any, config: Any, **kwargs: Any) -> None:
        super().__init__(input_size, *args, config=config, **kwargs)
        self.eps = config.layernorm_epsilon
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.layer_norm_weight = nn.Parameter(
            torch.ones(input_size, dtype=config.params_dtype, device=device)
        )
        self.layer_norm_weight.sequence_parallel = (  # type: ignore[attr-defined]
            config.sequence_parallel
        )

    def _forward_impl(self, input: Tensor, weight: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        return norm_linear(
            input,
            self.layer_norm_weight,
            weight,
            kwargs["bias"],
            eps=self.eps,
            gemm=self.config.gemm,
            ranks=TensorParallel(self.tp_group, sequence_parallel=kwargs["sequence_parallel"]),
        )
