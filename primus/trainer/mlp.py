"""Gated feed-forward layer of the local spec."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from primus.trainer.kernels import swiglu, swiglu_backward
from primus.trainer.linear import (
    ColumnParallelLinear,
    Gemm,
    RowParallelLinear,
    weight_gradient,
)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wide: Tensor, weight: Tensor, gemm: Gemm) -> Tensor:
        ctx.save_for_backward(wide, weight)
        ctx.gemm, ctx.main_grad = gemm, getattr(weight, "main_grad", None)
        return gemm.mm(swiglu(wide), weight.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        wide, weight = ctx.saved_tensors
        dwide, rows = swiglu_backward(ctx.gemm.mm(grads[0], weight), wide)
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(ctx.gemm, weight, ctx.main_grad, grads[0], rows)
        return dwide, dweight, None


def gated_linear(wide: Tensor, weight: Tensor, gemm: Gemm) -> Tensor:
    """`swiglu(wide) @ weight.T`; backward makes the rows of the product again.

    They come out of the pass that makes the gradient of `wide`, and are as large as half of it.

    Args:
        wide: (..., 2·ffn), gate and up side by side. weight: (out, ffn), its `main_grad` receives
            the gradient if it has one.
    """
    y: Tensor = _GatedLinear.apply(  # type: ignore[no-untyped-call]
        wide.reshape(-1, wide.shape[-1]), weight, gemm
    )
    return y.view(*wide.shape[:-1], weight.shape[0])


class GatedRowParallelLinear(RowParallelLinear):
    """The second layer, with the activation before it; it takes what the first one gives."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        return gated_linear(input, weight, self.config.gemm)


class SwiGLUMLP(MLP):
    """Gated feed-forward layer whose second layer is a `GatedRowParallelLinear`."""

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(s, b, hidden) → (s, b, hidden) and the output's bias, if it is added later."""
        wide, bias = self.linear_fc1(hidden_states)
        if bias is not None:
            wide = wide + bias
        return self.linear_fc2(wide)  # type: ignore[no-any-return]


def feed_forward_spec(
    first: type[ColumnParallelLinear],
    *,
    gated: bool,
    gated_module: type[SwiGLUMLP] = SwiGLUMLP,
    module: type[MLP] = MLP,
) -> ModuleSpec:
    """A feed-forward layer of one of two modules, gated or not, with that first layer."""
    second = GatedRowParallelLinear if gated else RowParallelLinear
    return ModuleSpec(
        module=gated_module if gated else module,
        submodules=MLPSubmodules(linear_fc1=first, linear_fc2=second),
    )
