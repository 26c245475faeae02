"""A norm and the linear layer after it: values, gradients, and what is kept between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from primus.trainer.linear import TorchGemm
from primus.trainer.norm_linear import TensorParallel, norm_linear

pytestmark = pytest.mark.usefixtures("eager")
EPS = 1e-5


class OneRank(TensorParallel):
    """A rank that has nobody to exchange with."""

    def __init__(self) -> None:
        self.exchanges = list[str]()

    def all_rows(self, rows: Tensor) -> Tensor:
        self.exchanges.append("all_rows")
        return rows

    def sum_of_own(self, rows: Tensor) -> Tensor:
        self.exchanges.append("sum_of_own")
        return rows


def operands(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    sizes = (5, 2, 12), (12,), (7, 12), (7,)
    x, norm, weight, bias = (torch.randn(size, generator=generator) for size in sizes)
    return tuple(t.to(dtype).requires_grad_() for t in (x, 1 + 0.3 * norm, weight, bias))


def exact(x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(F.rms_norm(x, x.shape[-1:], norm, EPS), weight, bias)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("buffered", [False, True], ids=["grad", "main_grad"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients(
    use_bias: bool, buffered: bool, dtype: torch.dtype, limit: float
) -> None:
    x, norm, weight, bias = operands(dtype)
    inputs = [x, norm, weight, *([bias] if use_bias else [])]
    if buffered:
        weight.main_grad = torch.full((7, 12), 0.5)  # type: ignore[attr-defined]
    ranks = OneRank()
    added = bias if use_bias else None
    y = norm_linear(x, norm, weight, added, eps=EPS, gemm=TorchGemm(), ranks=ranks)
    grad = torch.randn_like(y)
    y.backward(grad)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    wanted = exact(*wide, *([] if use_bias else [None]))
    wanted.backward(grad.double())
    found: list[Any] = [t.grad for t in inputs]
    if buffered:
        found[2] = weight.main_grad - 0.5  # type: ignore[attr-defined]
    for ours, true in zip([y, *found], [wanted, *(t.grad for t in wide)], strict=True):
        assert ours is not None
        assert true is not None
        assert (ours.double() - true).norm() < limit * true.norm()
    assert ranks.exchanges == ["all_rows", "sum_of_own", "all_rows"]


def test_only_the_input_is_kept_of_what_is_as_long_as_the_sequence() -> None:
    x, norm, weight, _ = operands(torch.float32)
    kept = list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_linear(x, norm, weight, None, eps=EPS, gemm=TorchGemm(), ranks=OneRank())
    given = {t.untyped_storage().data_ptr() for t in (x, norm, weight)}
    made = [t for t in kept if t.untyped_storage().data_ptr() not in given]
    assert len(kept) == 4
    assert [tuple(t.shape) for t in made] == [(10, 1)], "one scale per row"


def test_no_product_for_a_weight_that_is_frozen() -> None:
    x, norm, weight, _ = operands(torch.float32)
    ranks = OneRank()
    frozen = weight.detach()
    norm_linear(x, norm, frozen, None, eps=EPS, gemm=TorchGemm(), ranks=ranks).sum().backward()
    assert x.grad is not None
    assert ranks.exchanges == ["all_rows", "sum_of_own"]


@pytest.mark.parametrize(
    ("sequence_parallel", "rows", "summed"), [(False, 6, 6), (True, 12, 3)], ids=["whole", "parts"]
)
def test_what_ranks_exchange(sequence_parallel: bool, rows: int, summed: int) -> None:
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        group = distributed.group.WORLD
        assert group is not None
        ranks = TensorParallel(group, sequence_parallel=sequence_parallel)
        assert ranks.all_rows(torch.ones(6, 4)).shape == (rows, 4)
        assert ranks.sum_of_own(torch.ones(6, 4)).shape == (summed, 4)
    finally:
        distributed.destroy_process_group()
