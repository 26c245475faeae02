"""The ways to compute a 2-D product on a CPU with torch: the candidates of the CPU backend.

Every kernel gives what `torch.mm(a, b)` gives, in the same layout (row-major), and adds into a
buffer. None of them records autograd: they are meant for the forward and backward of an
`autograd.Function`. Their names use BLAS terms, so that BLAS A is torch's `b` and m counts columns.

The kernels that pack an operand pack it in every call. A weight keeps its values over the
micro-batches of a step, but nothing tells when they change: Megatron's optimizers write through
`param.data` and flat buffers, which leave `param._version` as it was (a test holds that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from primus.gemm.backends.base import DEFAULT
from primus.gemm.problem import Problem

# Raise it when a kernel is added, removed, computes or is judged differently: measured times then
# go apart.
KERNELS_VERSION = "3"
_MIN_SPLIT = 64

Mm = Callable[[Tensor, Tensor], Tensor]
Accumulate = Callable[[Tensor, Tensor, Tensor], Tensor]


def accumulate_default(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`out += a @ b`: one GEMM with beta = 1, or a GEMM and an addition for another dtype."""
    return out.addmm_(a, b) if out.dtype == a.dtype else out.add_(torch.mm(a, b))


def _accumulate_with(mm: Mm) -> Accumulate:
    return lambda a, b, out: out.add_(mm(a, b))


def _empty(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype, device=a.device)


def _other_order(matrix: Tensor) -> Tensor:
    """A copy in the other memory order: row-major becomes column-major and the reverse."""
    return matrix.contiguous() if matrix.stride(1) != 1 else matrix.t().contiguous().t()


def _swap(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(b.t(), a.t()).t().contiguous()


def _relayout_a(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, _other_order(b))


def _relayout_a_accumulate(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return accumulate_default(a, _other_order(b), out)


def _relayout_b(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(_other_order(a), b)


def _relayout_b_accumulate(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return accumulate_default(_other_order(a), b, out)


def _split_m(a: Tensor, b: Tensor) -> Tensor:
    out, half = _empty(a, b), b.shape[1] // 2
    torch.mm(a, b[:, :half], out=out[:, :half])
    torch.mm(a, b[:, half:], out=out[:, half:])
    return out


def _split_m_accumulate(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    half = b.shape[1] // 2
    accumulate_default(a, b[:, :half], out[:, :half])
    accumulate_default(a, b[:, half:], out[:, half:])
    return out


def _split_n(a: Tensor, b: Tensor) -> Tensor:
    out, half = _empty(a, b), a.shape[0] // 2
    torch.mm(a[:half], b, out=out[:half])
    torch.mm(a[half:], b, out=out[half:])
    return out


def _split_n_accumulate(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    half = a.shape[0] // 2
    accumulate_default(a[:half], b, out[:half])
    accumulate_default(a[half:], b, out[half:])
    return out


def _split_k(a: Tensor, b: Tensor) -> Tensor:
    half = a.shape[1] // 2
    return torch.mm(a[:, :half], b[:half]).addmm_(a[:, half:], b[half:])


def _split_k_accumulate(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    half = a.shape[1] // 2
    accumulate_default(a[:, :half], b[:half], out)
    return accumulate_default(a[:, half:], b[half:], out)


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")  # type: ignore[no-any-return]


def _prepack_onednn(a: Tensor, b: Tensor) -> Tensor:
    packed = torch.ops.mkldnn._reorder_linear_weight(b.t(), a.shape[0])
    return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
        a, packed, None, "none", [], ""
    )


def _prepack_mkl(a: Tensor, b: Tensor) -> Tensor:
    weight, rows = b.t(), a.shape[0]
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return torch.ops.mkl._mkl_linear(a, packed, weight, None, rows)  # type: ignore[no-any-return]


def _upcast(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.float(), b.float()).to(a.dtype)


def _upcast_accumulate(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    if out.dtype == torch.float32:
        return out.addmm_(a.float(), b.float())
    return out.add_(torch.mm(a.float(), b.float()))


def _bf16_inputs(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.bfloat16(), b.bfloat16()).float()


def _bf16_math(a: Tensor, b: Tensor) -> Tensor:
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        return torch.mm(a, b)
    finally:
        backend.fp32_precision = before


def _any(problem: Problem) -> bool:
    return True


def _is_fp32(problem: Problem) -> bool:
    return problem.a_type == "f32_r"


def _is_bf16(problem: Problem) -> bool:
    return problem.a_type == "bf16_r"


def _has_onednn(problem: Problem) -> bool:
    return bool(torch.backends.mkldnn.is_available())


def _has_mkl(problem: Problem) -> bool:
    return hasattr(torch.ops.mkl, "_mkl_linear")


@dataclass(frozen=True)
class Kernel:
    """One way to compute a 2-D product.

    Attributes:
        mm: `a @ b` for 2-D operands of one dtype, row-major.
        accumulate: `out += a @ b`; `out` has the operands' dtype, or is float32.
        legal: whether it can serve a problem that `dispatchable` has let through.
        lossy: known to lose precision: only with `allow_lossy`.
    """

    mm: Mm
    accumulate: Accumulate
    legal: Callable[[Problem], bool] = _any
    lossy: bool = False


KERNELS: dict[str, Kernel] = {
    DEFAULT: Kernel(torch.mm, accumulate_default),
    "mm_add": Kernel(torch.mm, _accumulate_with(torch.mm), lambda p: p.beta == 1),
    "swap": Kernel(_swap, _accumulate_with(_swap), lambda p: p.beta == 0),
    "relayout_a": Kernel(_relayout_a, _relayout_a_accumulate),
    "relayout_b": Kernel(_relayout_b, _relayout_b_accumulate),
    "split_m": Kernel(_split_m, _split_m_accumulate, lambda p: p.m >= _MIN_SPLIT),
    "split_n": Kernel(_split_n, _split_n_accumulate, lambda p: p.n >= _MIN_SPLIT),
    "split_k": Kernel(_split_k, _split_k_accumulate, lambda p: p.k >= _MIN_SPLIT),
    "onednn": Kernel(_onednn, _accumulate_with(_onednn), _has_onednn),
    "prepack_onednn": Kernel(
        _prepack_onednn,
        _accumulate_with(_prepack_onednn),
        _has_onednn,
    ),
    "prepack_mkl": Kernel(
        _prepack_mkl,
        _accumulate_with(_prepack_mkl),
        lambda p: _is_fp32(p) and _has_mkl(p),
    ),
    "upcast": Kernel(_upcast, _upcast_accumulate, _is_bf16),
    "bf16_math": Kernel(
        _bf16_math,
        _accumulate_with(_bf16_math),
        lambda p: _is_fp32(p) and _has_onednn(p),
        lossy=True,
    ),
    "bf16_inputs": Kernel(_bf16_inputs, _accumulate_with(_bf16_inputs), _is_fp32, lossy=True),
}


def dispatchable(problem: Problem) -> str | None:
    """Why `GemmDispatcher` never meets this problem; None where it does."""
    if problem.batch_count > 1 or problem.grouped_gemm:
        return "batched and grouped GEMMs do not go through the dispatcher"
    if problem.a_type not in ("f32_r", "bf16_r") or problem.b_type != problem.a_type:
        return f"no kernels for {problem.a_type} x {problem.b_type}"
    if problem.bias_vector or problem.activation_type != "none":
        return "GEMMs with an epilogue do not go through the dispatcher"
    in_place = problem.beta == 1 and problem.ldc == problem.ldd
    if problem.alpha != 1 or not (problem.beta == 0 or in_place):
        return "only alpha = 1 with beta = 0 or 1 goes through the dispatcher"
    if {problem.c_type, problem.d_type} != {problem.a_type}:
        return f"no kernels that write {problem.d_type} from {problem.a_type}"
    return None
