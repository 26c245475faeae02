"""torch's GEMMs on the CPU: MKL and oneDNN in the ways of `primus.gemm.kernels`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from primus.artifacts.gemm import load_tuned
from primus.gemm.backends.base import DEFAULT, Backend, BackendSpec, Numerics
from primus.gemm.bandwidth import measure_bandwidth
from primus.gemm.kernels import KERNELS, KERNELS_VERSION, dispatchable
from primus.gemm.operands import DTYPE_OF_TYPE, Operands, make_operands
from primus.gemm.peak import cpu_clock, measure_peak
from primus.gemm.problem import Problem
from primus.gemm.stack import Stack

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "sve", "bf16")
# A sample lasts at least this long, so that the clock's and the caller's share stays small.
_SAMPLE_SECONDS = 1e-3
# The operands of successive calls are copies of together this size, or eight: training finds
# few of them in the cache.
_ROTATE_BYTES = 32 << 20
_ROTATE_COPIES = 8
# Rows of the result that are held against float64.
_CHECKED_ROWS = 64


class CpuBackend(Backend):
    """Times the kernels in this process, with as many threads as a rank of the training has."""

    name = "cpu"
    min_gain = 0.05
    bytes_per_us = 10_000.0

    def __init__(self, spec: BackendSpec) -> None:
        super().__init__(spec)
        self._problem: Problem | None = None
        self._operands: list[Operands] = []
        self._calls: dict[str, int] = {}
        self._turn = 0

    def unavailable(self) -> str | None:
        return None

    def stack(self) -> Stack:
        return cpu_stack(self.spec.threads)

    def candidates(self, problem: Problem) -> tuple[str, ...]:
        if problem.grouped_gemm or problem.activation_type != "none":
            return ()
        types = (problem.a_type, problem.b_type, problem.c_type, problem.d_type)
        if any(t not in DTYPE_OF_TYPE for t in types) or len(set(types)) > 1:
            return ()
        if dispatchable(problem) is not None:
            return (DEFAULT,)
        return tuple(name for name, kernel in KERNELS.items() if kernel.legal(problem))

    def why_no_candidates(self, problem: Problem) -> str:
        return dispatchable(problem) or super().why_no_candidates(problem)

    def measure(self, problem: Problem, candidate: str) -> float:
        self._open(problem)
        call = _caller(problem, candidate)
        if candidate not in self._calls:
            self._time(call, 1)
            once = self._time(call, 1)
            self._calls[candidate] = max(1, round(_SAMPLE_SECONDS / max(once, 1e-7)))
            if self._calls[candidate] == 1:
                return once * 1e6
        calls = self._calls[candidate]
        return self._time(call, calls) / calls * 1e6

    def _open(self, problem: Problem) -> None:
        if problem == self._problem:
            return
        torch.set_num_threads(self.spec.threads)
        copies = min(_ROTATE_COPIES, max(1, _ROTATE_BYTES // max(1, problem.bytes)))
        self._operands = [make_operands(problem, seed) for seed in range(copies)]
        self._problem, self._calls = problem, {}

    def _time(self, call: Callable[[Operands], object], calls: int) -> float:
        sets = self._operands
        clock = cpu_clock(self.spec.threads)
        start = clock()
        for number in range(self._turn, self._turn + calls):
            call(sets[number % len(sets)])
        seconds = clock() - start
        self._turn += calls
        return seconds

    def numerics(self, problem: Problem, candidate: str) -> Numerics:
        operands = make_operands(problem, 0)
        default = _result(problem, DEFAULT, operands)
        other = _result(problem, candidate, operands)
        rows = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0))[:_CHECKED_ROWS]
        exact = operands.a[rows].double() @ operands.b.double()
        if operands.c is not None:
            exact += operands.c[rows].double()
        return Numerics.of(
            torch.equal(default, other),
            _rms(other[rows], exact),
            _rms(default[rows], exact),
            in_order=error_in_order(problem.k) if problem.a_type == "f32_r" else 0.0,
        )

    def activate(self, tuned: Path) -> Mapping[str, str]:
        """The process-level candidate that whole steps chose; the kernels are called in torch."""
        process = load_tuned(tuned)[0].process
        return process.environment if process is not None else {}

    def peak(self, type_name: str) -> float:
        if type_name not in DTYPE_OF_TYPE:
            raise RuntimeError(f"no torch.mm of {type_name} on a CPU")
        torch.set_num_threads(self.spec.threads)
        return measure_peak(DTYPE_OF_TYPE[type_name])

    def peak_types(self, type_name: str) -> tuple[str, ...]:
        # `upcast` computes bf16 in fp32, lossy kernels fp32 in bf16.
        return ("bf16_r", "f32_r") if type_name in ("bf16_r", "f32_r") else (type_name,)

    def bandwidth(self) -> float:
        torch.set_num_threads(self.spec.threads)
        return measure_bandwidth()


def _caller(problem: Problem, candidate: str) -> Callable[[Operands], object]:
    if candidate == DEFAULT and dispatchable(problem) is not None:
        return lambda o: _torch_default(problem, o)
    kernel = KERNELS[candidate]
    if problem.beta:
        return lambda o: kernel.accumulate(o.a, o.b, o.c)  # type: ignore[arg-type]
    return lambda o: kernel.mm(o.a, o.b)


def _torch_default(problem: Problem, operands: Operands) -> Tensor:
    a, b, c = operands.a, operands.b, operands.c
    if c is None:
        return torch.matmul(a, b)
    add = torch.baddbmm if problem.batch_count > 1 else torch.addmm
    return add(c, a, b, beta=problem.beta or 1, alpha=problem.alpha)


def _result(problem: Problem, candidate: str, operands: Operands) -> Tensor:
    if not problem.beta:
        return KERNELS[candidate].mm(operands.a, operands.b)
    if operands.c is None:
        raise RuntimeError(f"{problem}: no C to add to")
    out = operands.c.clone()
    return KERNELS[candidate].accumulate(operands.a, operands.b, out)


def error_in_order(k: int) -> float:
    """RMS error of adding k products of normal numbers one by one in float32, and a tenth.

    The i-th addition rounds a sum of size sqrt(i): its error is spread evenly over a unit in the
    last place of the power of two below, sqrt(i) x 2^-24 / sqrt(3) x .72 in the mean of squares.
    """
    return 1.1 * 0.72 * 2**-24 / math.sqrt(3) * k / math.sqrt(2)


def _rms(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).square().mean().sqrt())


def cpu_stack(threads: int) -> Stack:
    """The stack of this machine for ranks of `threads` threads."""
    info = _cpuinfo()
    model = info.get("model name") or info.get("CPU part") or "unknown CPU"
    numbers = [info[name] for name in ("cpu family", "model", "stepping") if name in info]
    flags = set((info.get("flags") or info.get("Features") or "").split())
    features = [name for name in _FEATURES if name in flags]
    capability = torch.backends.cpu.get_cpu_capability()
    text = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\S+)", text)
    onednn = re.search(r"MKL-DNN (v\S+)", text)
    return Stack(
        backend=CpuBackend.name,
        device=" ".join([model, "/".join(numbers)]).strip(),
        features=(*features, f"aten={capability}"),
        threads=threads,
        libraries={
            "torch": torch.__version__,
            "mkl": mkl[1] if mkl else "none",
            "onednn": onednn[1] if onednn else "none",
        },
        candidates=f"cpu-{KERNELS_VERSION}",
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    info: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, found, value = line.partition(":")
        if found:
            info.setdefault(name.strip(), value.strip())
    return info
