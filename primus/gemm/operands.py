"""Random torch operands laid out as a problem says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from primus.gemm.problem import Problem

DTYPE_OF_TYPE = {
    "f64_r": torch.float64,
    "f32_r": torch.float32,
    "f16_r": torch.float16,
    "bf16_r": torch.bfloat16,
}


@dataclass(frozen=True)
class Operands:
    """Of `a @ b`, 2-D or batched; `c` is what the result is added to, or None.

    Never zeros: hardware may run faster on them, and they hide wrong results.
    """

    a: Tensor
    b: Tensor
    c: Tensor | None


def make_operands(problem: Problem, seed: int, device: str = "cpu") -> Operands:
    """Operands with normally distributed elements in the problem's layouts.

    Args:
        problem: of the types in `DTYPE_OF_TYPE`, not grouped.
        seed: equal seeds give equal elements.
    """
    p = problem
    generator = torch.Generator(device).manual_seed(seed)

    def matrix(rows: int, columns: int, lead: int, trans: str, stride: int, type_: str) -> Tensor:
        down, right = (rows, columns) if trans == "N" else (columns, rows)
        size = (p.batch_count - 1) * stride + (down - 1) * lead + right
        flat = torch.randn(size, generator=generator, device=device).to(DTYPE_OF_TYPE[type_])
        view = flat.as_strided((p.batch_count, down, right), (stride, lead, 1))
        view = view if trans == "N" else view.mT
        return view if p.batch_count > 1 else view[0]

    a = matrix(p.n, p.k, p.ldb, p.transB, p.stride_b, p.b_type)
    b = matrix(p.k, p.m, p.lda, p.transA, p.stride_a, p.a_type)
    if p.bias_vector:
        bias = torch.randn(p.m, generator=generator, device=device)
        return Operands(a, b, bias.to(DTYPE_OF_TYPE[p.bias_type or p.d_type]))
    c = matrix(p.n, p.m, p.ldc, "N", p.stride_c, p.c_type) if p.beta else None
    return Operands(a, b, c)
