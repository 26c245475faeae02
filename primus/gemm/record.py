"""Count the GEMMs of a training step by watching what reaches torch's dispatcher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from primus.artifacts.gemm import Tokens
from primus.gemm.problem import Problem
from primus.gemm.shapes import Phase

Reader = Callable[[Sequence[Any], Mapping[str, Any], Tensor], Problem]


@dataclass
class Recorded:
    """The GEMMs of some steps.

    Attributes:
        calls: per problem and phase.
        varying: the problems of experts, and which of their sizes varies with their tokens.
    """

    calls: Counter[tuple[Problem, Phase]] = field(default_factory=Counter)
    varying: dict[Problem, Tokens] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Iterable[Recorded]) -> Recorded:
        """All parts together."""
        whole = cls()
        for part in parts:
            whole.calls.update(part.calls)
            whole.varying.update(part.varying)
        return whole


class GemmRecorder(TorchDispatchMode):
    """Context manager that counts every GEMM in its body, with phase.

    Under `FakeTensorMode` (entered first, the recorder inside it) it is the trace: the same list
    without memory or device. It sees mm, addmm, bmm, baddbmm, their in-place, out= and out_dtype
    forms, _scaled_mm, and whatever decomposes into them (linear, matmul, einsum), in forward and
    backward; autograd hands the mode to its device threads.

    It cannot see GEMMs inside other kernels: fused attention (SDPA), convolutions, compiled
    regions that hold a GEMM, custom operators such as TransformerEngine's, grouped GEMMs. Products
    with a vector (mv, dot) and empty ones are not GEMMs here.

    Attributes:
        calls: per problem and phase. Recomputation inside backward counts as backward.
        times: how often each GEMM counts; a trace that runs one of many equal layers raises it.
        tokens: set by the caller around GEMMs of which a size varies with the tokens of experts.
        varying: the problems that were called so, and which of their sizes varies.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[tuple[Problem, Phase]] = Counter()
        self.times = 1
        self.tokens: Tokens | None = None
        self.varying: dict[Problem, Tokens] = {}

    @property
    def recorded(self) -> Recorded:
        """What was seen so far."""
        return Recorded(Counter(self.calls), dict(self.varying))

    @property
    def counts(self) -> Counter[Problem]:
        """Calls per problem, over both phases."""
        total: Counter[Problem] = Counter()
        for (problem, _), count in self.calls.items():
            total[problem] += count
        return total

    @property
    def flops(self) -> int:
        """Floating point operations of everything recorded."""
        return sum(problem.flops * count for (problem, _), count in self.calls.items())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        reader = _READERS.get(func.overloadpacket) if hasattr(func, "overloadpacket") else None
        if reader is None:
            # Under inference_mode torch hands over linear and matmul undecomposed.
            if _is_composite(func):
                with self:
                    result = func.decompose(*args, **named)
                if result is not NotImplemented:
                    return result
            return func(*args, **named)
        result = func(*args, **named)
        if all(tensor.numel() for tensor in args if isinstance(tensor, Tensor)):
            backward = torch._C._current_autograd_node() is not None
            phase: Phase = "backward" if backward else "forward"
            problem = reader(args, named, result)
            self.calls[problem, phase] += self.times
            if self.tokens is not None:
                self.varying[problem] = self.tokens
        return result


def _is_composite(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    name = str(func._schema.name)
    overload = f"{name}.{func._overloadname}" if func._overloadname != "default" else name
    return torch._C._dispatch_has_kernel_for_dispatch_key(overload, composite)


def _read_mm(args: Sequence[Any], named: Mapping[str, Any], result: Tensor) -> Problem:
    return Problem.from_mm(args[0], args[1], result)


def _read_addmm(args: Sequence[Any], named: Mapping[str, Any], result: Tensor) -> Problem:
    beta, alpha = named.get("beta", 1), named.get("alpha", 1)
    return Problem.from_addmm(args[0], args[1], args[2], beta=beta, alpha=alpha, out=result)


def _read_scaled_mm(args: Sequence[Any], named: Mapping[str, Any], result: Tensor) -> Problem:
    names = ("self", "mat2", "scale_a", "scale_b", "bias", "scale_result")
    values = dict(zip(names, args, strict=False)) | dict(named)
    plain = Problem.from_mm(values["self"], values["mat2"], result).to_json()
    # BLAS A is torch's second operand.
    plain["scaleA"], plain["scaleB"] = _scale(values["scale_b"]), _scale(values["scale_a"])
    if values.get("bias") is not None:
        plain["bias_vector"] = True
        plain["bias_type"] = Problem.from_mm(values["bias"][None].T, values["bias"][None]).a_type
    return Problem.from_json(plain)


def _scale(scale: Tensor) -> str:
    return "1" if scale.numel() == 1 else "2"


_ATEN = torch.ops.aten
_READERS: dict[Any, Reader] = {
    _ATEN.mm: _read_mm,
    _ATEN.bmm: _read_mm,
    _ATEN.addmm: _read_addmm,
    _ATEN.addmm_: _read_addmm,
    _ATEN.baddbmm: _read_addmm,
    _ATEN.baddbmm_: _read_addmm,
    _ATEN._addmm_activation: _read_addmm,
    _ATEN._scaled_mm: _read_scaled_mm,
}
