"""The linear layer's three GEMMs, and gradients added into Megatron's buffer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from primus.gemm.record import GemmRecorder
from primus.trainer.linear import TorchGemm, adds_into_float32, grouped_linear, linear
from primus.trainer.mlp import gated_linear


class Counting(TorchGemm):
    """Remembers the operands' shapes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls.append(("mm", tuple(a.shape), tuple(b.shape)))
        return super().mm(a, b)

    def mm_accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        self.calls.append(("mm_accumulate", tuple(a.shape), tuple(b.shape)))
        return super().mm_accumulate(a, b, out)


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(11)
    x = torch.randn(5, 2, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(7, 12, dtype=dtype, requires_grad=True)
    bias = torch.randn(7, dtype=dtype, requires_grad=True)
    return x, weight, bias


def wanted_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> tuple[Tensor, ...]:
    inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = F.linear(*inputs)
    return (y, *torch.autograd.grad(y, inputs, grad.double()))


@pytest.mark.parametrize("use_bias", [False, True])
def test_values_and_gradients_equal_those_of_autograd(use_bias: bool) -> None:
    x, weight, bias = operands(torch.float32)
    added = bias if use_bias else None
    y = linear(x, weight, added, TorchGemm())
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted = wanted_gradients(x, weight, added, grad)
    found = [y, x.grad, weight.grad, *([bias.grad] if use_bias else [])]
    assert len(found) == len(wanted)
    for value, expected in zip(found, wanted, strict=True):
        assert value is not None
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_micro_batches_add_up_in_main_grad(dtype: torch.dtype) -> None:
    x, weight, _ = operands(dtype)
    weight.main_grad = torch.full((7, 12), 0.5)  # type: ignore[attr-defined]
    total = torch.full((7, 12), 0.5, dtype=torch.float64)
    for _ in range(2):
        weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
        y = linear(x, weight, None, TorchGemm())
        grad = torch.randn_like(y)
        y.backward(grad)
        assert weight.grad_added_to_main_grad, "Megatron's hook would add the gradient again"
        total += wanted_gradients(x, weight, None, grad)[2]
    main_grad: Tensor = weight.main_grad  # type: ignore[attr-defined]
    assert main_grad.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(main_grad.double(), total, rtol=tolerance, atol=10 * tolerance)


def test_every_product_goes_through_the_gemm() -> None:
    x, weight, _ = operands(torch.float32)
    gemm = Counting()
    linear(x, weight, None, gemm).sum().backward()
    assert gemm.calls == [
        ("mm", (10, 12), (12, 7)),
        ("mm", (10, 7), (7, 12)),
        ("mm", (7, 10), (10, 12)),
    ]


def test_with_main_grad_the_weight_gradient_is_one_accumulating_product() -> None:
    x, weight, _ = operands(torch.float32)
    weight.main_grad = torch.zeros(7, 12)  # type: ignore[attr-defined]
    gemm = Counting()
    linear(x, weight, None, gemm).sum().backward()
    assert gemm.calls[-1] == ("mm_accumulate", (7, 10), (10, 12))
    assert len(gemm.calls) == 3


def test_products_that_nobody_needs_are_left_out() -> None:
    x, weight, _ = operands(torch.float32)
    gemm = Counting()
    linear(x.detach(), weight, None, gemm).sum().backward()
    assert [name for name, *_ in gemm.calls] == ["mm", "mm"]
    gemm = Counting()
    linear(x, weight.detach(), None, gemm).sum().backward()
    assert gemm.calls[1:] == [("mm", (10, 7), (7, 12))]


@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 0, 7]])
@pytest.mark.parametrize("buffers", [False, True])
def test_a_grouped_layer_is_one_layer_per_part(counts: list[int], buffers: bool) -> None:
    torch.manual_seed(3)
    rows = torch.randn(7, 12, requires_grad=True)
    weights = [torch.randn(5, 12, requires_grad=True) for _ in counts]
    if buffers:
        for weight in weights:
            weight.main_grad = torch.ones(5, 12)  # type: ignore[attr-defined]
    gemm = Counting()
    y = grouped_linear(rows, weights, counts, gemm)
    grad = torch.randn_like(y)
    y.backward(grad)
    inputs = [t.detach().clone().requires_grad_() for t in (rows, *weights)]
    parts = zip(inputs[0].split(counts), inputs[1:], strict=True)
    wanted = torch.cat([F.linear(part, weight) for part, weight in parts])
    wanted.backward(grad)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(rows.grad, inputs[0].grad)
    for weight, expected in zip(weights, inputs[1:], strict=True):
        assert expected.grad is not None
        assert weight.grad is not None, "Megatron's hook fires"
        found = weight.main_grad - 1 if buffers else weight.grad  # type: ignore[attr-defined]
        torch.testing.assert_close(found, expected.grad)
    assert all(min(*a, *b) > 0 for _, a, b in gemm.calls), "no product is empty"


def test_a_grouped_layer_without_rows_still_has_a_backward() -> None:
    rows = torch.empty(0, 12, requires_grad=True)
    weights = [torch.randn(5, 12, requires_grad=True) for _ in range(2)]
    y = grouped_linear(rows, weights, [0, 0], TorchGemm())
    assert y.shape == (0, 5)
    y.backward(torch.empty(0, 5))
    assert rows.grad is not None
    assert rows.grad.shape == (0, 12)
    assert all(weight.grad is not None and not weight.grad.any() for weight in weights)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("buffered", [False, True], ids=["grad", "main_grad"])
def test_gated_linear_keeps_only_what_it_was_given(buffered: bool) -> None:
    torch.manual_seed(5)
    wide = torch.randn(5, 2, 24, requires_grad=True)
    weight = torch.randn(7, 12, requires_grad=True)
    if buffered:
        weight.main_grad = torch.full((7, 12), 0.5)  # type: ignore[attr-defined]
    gemm, kept = Counting(), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = gated_linear(wide, weight, gemm)
    storages = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert storages == {t.untyped_storage().data_ptr() for t in (wide, weight)}

    exact_wide, exact_weight = (t.detach().double().requires_grad_() for t in (wide, weight))
    gate, up = exact_wide.chunk(2, -1)
    wanted = F.linear(F.silu(gate) * up, exact_weight)
    grad = torch.randn_like(y)
    y.backward(grad)
    wanted.backward(grad.double())
    found = weight.main_grad - 0.5 if buffered else weight.grad  # type: ignore[attr-defined]
    for ours, exact in ((y, wanted), (wide.grad, exact_wide.grad), (found, exact_weight.grad)):
        assert ours is not None
        assert exact is not None
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    accumulating = "mm_accumulate" if buffered else "mm"
    assert [kind for kind, *_ in gemm.calls] == ["mm", "mm", accumulating]


def test_gradients_are_added_in_float32_by_the_gemm_where_it_can() -> None:
    with FakeTensorMode(), GemmRecorder() as seen:
        a, b = (torch.empty(7, 5, dtype=torch.bfloat16), torch.empty(5, 3, dtype=torch.bfloat16))
        out = torch.empty(7, 3)
        assert TorchGemm(into_float32=True).mm_accumulate(a, b, out) is out
        assert TorchGemm(into_float32=False).mm_accumulate(a, b, out) is out
    wide, narrow = (problem for problem, _ in seen.calls)
    assert (wide.a_type, wide.c_type, wide.d_type, wide.beta) == ("bf16_r", "f32_r", "f32_r", 1)
    assert (narrow.d_type, narrow.beta) == ("bf16_r", 0)


def test_a_device_that_cannot_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    adds_into_float32.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        # A CPU has no such product, and stands in for a GPU that refuses it.
        for name in ("ones", "full"):
            made = getattr(torch, name)
            patch.setattr(torch, name, lambda *a, made=made, device, **k: made(*a, **k))
        assert not any(adds_into_float32(torch.bfloat16) for _ in range(2))
    adds_into_float32.cache_clear()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "weight gradients of torch.bfloat16 are added apart, which is slower"
    ]
