"""What counts as rounding, and what as lower precision."""

from __future__ import annotations

import pytest
import torch

from primus.gemm.backends.base import BackendSpec, Numerics
from primus.gemm.backends.cpu import CpuBackend, error_in_order
from primus.gemm.kernels import KERNELS
from primus.gemm.problem import Problem


@pytest.mark.parametrize("k", [64, 512, 3000])
def test_error_of_adding_in_order(k: int) -> None:
    """Just above what such sums really show."""
    generator = torch.Generator().manual_seed(k)
    a, b = (torch.randn(k, 4096, generator=generator) for _ in range(2))
    total = torch.zeros(4096)
    for left, right in zip(a, b, strict=True):
        total += left * right
    exact = (a.double() * b.double()).sum(0)
    error = float((total.double() - exact).square().mean().sqrt())
    assert error < error_in_order(k) < 1.2 * error


@pytest.mark.parametrize(
    ("error", "kind"), [(1.4, "rounding"), (1.9, "rounding"), (2.1, "lossy"), (900.0, "lossy")]
)
def test_adding_in_order_loses_no_precision(error: float, kind: str) -> None:
    found = Numerics.of(False, error, 1.0, in_order=2.0)
    assert (found.kind, found.error_ratio) == (kind, error)


@pytest.mark.parametrize("k", [128, 1408])
def test_no_kernel_in_float32_is_lossy_and_those_in_bfloat16_are(k: int) -> None:
    a, b = torch.randn(96, k), torch.randn(256, k).t()
    problem = Problem.from_mm(a, b)
    backend = CpuBackend(BackendSpec(name="cpu", threads=1))
    names = [name for name in backend.candidates(problem) if name != "default"]
    kinds = {name: backend.numerics(problem, name).kind for name in names}
    lossy = {name for name in names if KERNELS[name].lossy}
    assert lossy
    # bf16_math may be float32 after all on a processor without such instructions.
    assert kinds["bf16_inputs"] == "lossy"
    assert {name for name, kind in kinds.items() if kind == "lossy"} <= lossy
