"""Compiled kernels against autograd in double precision."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from primus.trainer.kernels import (
    cross_entropy,
    latent_heads,
    rms_norm,
    scaled_swiglu,
    split_rotate,
    swiglu,
    swiglu_backward,
)

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def compare(
    kernel: Function, reference: Function, inputs: Sequence[Tensor], tolerance: float
) -> None:
    """Outputs, and gradients of all floating inputs, for one random output gradient.

    The error is relative to the largest element; the reference runs in float64.
    """
    own, wide = [], []
    for tensor in inputs:
        floating = tensor.is_floating_point()
        own.append(tensor.clone().requires_grad_(floating))
        wide.append((tensor.double() if floating else tensor).clone().requires_grad_(floating))
    results, wanted = as_tuple(kernel(*own)), as_tuple(reference(*wide))
    assert len(results) == len(wanted)
    grads = [torch.randn(w.shape).to(r.dtype) for r, w in zip(results, wanted, strict=True)]
    torch.autograd.backward(results, grads)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    for result, expected in zip(results, wanted, strict=True):
        close(result, expected, tolerance)
    for a, b in zip(own, wide, strict=True):
        if a.is_floating_point():
            assert a.grad is not None
            assert a.grad.dtype == a.dtype
            close(a.grad, b.grad, tolerance)


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def close(value: Tensor, wanted: Tensor | None, tolerance: float) -> None:
    assert wanted is not None
    assert value.shape == wanted.shape
    error = (value.double() - wanted).abs().max() / wanted.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"


def reference_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-5)


class SwiGLU(torch.autograd.Function):
    """As the feed-forward layer has it, without the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return swiglu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx, again = swiglu_backward(grads[0], x)
        assert torch.equal(again, swiglu(x))
        return dx


def differentiable_swiglu(x: Tensor) -> Tensor:
    y: Tensor = SwiGLU.apply(x)  # type: ignore[no-untyped-call]
    return y


def reference_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def reference_rotation(mixed: Tensor, angles: Tensor, queries: int) -> tuple[Tensor, ...]:
    """Each pair (i, i + head/2) turned by its angle, written as complex numbers."""
    half = mixed.shape[-1] // 2
    turned = torch.complex(mixed[..., :half], mixed[..., half:]) * torch.polar(
        torch.ones_like(angles), angles
    ).view(-1, 1, 1, 1, half)
    rotated = torch.cat((turned.real, turned.imag), -1)
    heads_first = [
        part.flatten(2, 3).permute(1, 2, 0, 3)
        for part in (
            rotated[..., :queries, :],
            rotated[..., queries : queries + 1, :],
            mixed[..., queries + 1 :, :],
        )
    ]
    return tuple(heads_first)


def reference_latent_heads(
    queries: Tensor, keys_values: Tensor, rotary_key: Tensor, angles: Tensor, plain: int, pad: bool
) -> tuple[Tensor, ...]:
    """Each pair (2i, 2i + 1) turned by its angle; real parts first, then imaginary ones."""

    def turn(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None, None]
        return torch.cat((turned.real, turned.imag), -1)

    heads = queries.shape[2]
    key = turn(rotary_key.unsqueeze(2)).expand(-1, -1, heads, -1)
    value = keys_values[..., plain:]
    parts = (
        torch.cat((queries[..., :plain], turn(queries[..., plain:])), -1),
        torch.cat((keys_values[..., :plain], key), -1),
        F.pad(value, (0, queries.shape[-1] - value.shape[-1])) if pad else value,
    )
    return tuple(part.permute(1, 2, 0, 3) for part in parts)


def angles_of(length: int, head: int) -> Tensor:
    frequencies = 500000.0 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequencies)


def check_all(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(3)
    s, b, groups, queries, head = 6, 2, 2, 3, 8
    hidden = torch.randn(s, b, 24).to(dtype)
    weight = (1 + 0.2 * torch.randn(24)).to(dtype)
    compare(lambda x, w: rms_norm(x, w, 1e-5), reference_norm, [hidden, weight], tolerance)

    compare(differentiable_swiglu, reference_swiglu, [torch.randn(s, b, 40).to(dtype)], tolerance)

    angles = angles_of(s, head)
    table = torch.cat((angles, angles), -1)
    cos, sin = table.cos().float(), table.sin().float()
    mixed = torch.randn(s, b, groups, queries + 2, head).to(dtype)
    compare(
        lambda x: split_rotate(x, cos, sin, queries),
        lambda x: reference_rotation(x, angles, queries),
        [mixed],
        tolerance,
    )

    compare(
        scaled_swiglu,
        lambda x, scale: reference_swiglu(x) * scale.unsqueeze(-1),
        [torch.randn(7, 40).to(dtype), torch.rand(7)],
        tolerance,
    )

    cos, sin = angles_of(s, 4).cos().float(), angles_of(s, 4).sin().float()
    for pad in (True, False):
        compare(
            lambda q, kv, k, pad=pad: latent_heads(q, kv, k, cos, sin, 6, pad=pad),
            lambda q, kv, k, pad=pad: reference_latent_heads(q, kv, k, angles_of(s, 4), 6, pad),
            [torch.randn(s, b, *shape).to(dtype) for shape in ((3, 10), (3, 11), (4,))],
            tolerance,
        )

    labels = torch.randint(0, 33, (s * b,))
    compare(
        cross_entropy,
        lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
        [(4 * torch.randn(s * b, 33)).to(dtype), labels],
        tolerance,
    )


def test_compiled_kernels_in_single_precision() -> None:
    check_all(torch.float32, 2e-6)


@pytest.mark.usefixtures("eager")
def test_eager_kernels_in_single_precision() -> None:
    check_all(torch.float32, 2e-6)


@pytest.mark.usefixtures("eager")
def test_kernels_in_bfloat16() -> None:
    check_all(torch.bfloat16, 2e-2)


@pytest.mark.usefixtures("eager")
def test_cross_entropy_of_large_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.usefixtures("eager")
def test_gradient_of_a_label_that_is_nearly_certain() -> None:
    """Its probability rounds to 1 in bfloat16, and its gradient is not 0."""
    logits = torch.tensor([[9.0, 0.0, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    exact = torch.softmax(logits.detach().double(), -1)[0, 0].item() - 1
    cross_entropy(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(exact, rel=2**-8)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_of_logits_takes_their_place(dtype: torch.dtype) -> None:
    scores = torch.randn(6, 33, dtype=dtype, requires_grad=True)
    logits = scores * 1
    received: list[Tensor] = []
    logits.register_hook(received.append)
    loss = cross_entropy(logits, torch.arange(6)).sum()
    loss.backward(retain_graph=True)
    assert received[0].data_ptr() == logits.data_ptr()
    # They are gone: who asks for them once more is refused.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


WITHOUT_COMPILER = """
import logging, torch
logging.basicConfig()
from primus.trainer.kernels import compile_or_fall_back, rms_norm
assert compile_or_fall_back(torch.device("cpu")) is False
x = torch.randn(3, 8, requires_grad=True)
rms_norm(x, torch.ones(x.shape[-1]), 1e-5).sum().backward()
assert x.grad.abs().sum() > 0
from torch._dynamo.utils import counters
assert not counters["frames"], counters
print("ran")
"""


def test_without_a_compiler_kernels_run_eagerly_and_say_so(tmp_path: Path) -> None:
    for name in ("cat", "uname"):  # something on PATH, but no compiler
        found = shutil.which(name)
        if found:
            (tmp_path / name).symlink_to(found)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        env=os.environ | {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ran\n"
    assert result.stderr.count("no C++ compiler found") == 1
