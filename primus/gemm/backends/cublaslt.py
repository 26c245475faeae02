"""cuBLASLt's algorithms on NVIDIA GPUs, timed in this process by a small C++ library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.errors import ArtifactError, UnavailableError
from primus.gemm.backends.base import DEFAULT, Backend, BackendSpec, Numerics
from primus.gemm.cublaslt.algo_file import (
    FILE_NAME,
    AlgorithmHeader,
    entries_of,
    read_algorithms,
    write_algorithms,
)
from primus.gemm.cublaslt.build import library
from primus.gemm.cublaslt.problem_text import render_problem
from primus.gemm.cublaslt.tuner import DeviceInfo, Tuner
from primus.gemm.problem import Problem
from primus.gemm.stack import Stack

# Raise it when the native tuner finds other candidates or builds them otherwise.
CANDIDATES_VERSION = 1

_PEAK_SIZES = (4096, 8192)
# Enough for the clocks to rise from idle.
_PEAK_SAMPLES = 20
_NARROW = ("f8_r", "bf8_r")


class CublasltBackend(Backend):
    """What cublasLtMatmulAlgoGetHeuristic proposes; a candidate has TunableOp's spelling."""

    name = "cublaslt"
    min_gain = 0.02
    bytes_per_us = 3_000_000.0

    def __init__(self, spec: BackendSpec) -> None:
        super().__init__(spec)
        self._problem: Problem | None = None
        self._names: tuple[str, ...] = ()

    @cached_property
    def _tuner(self) -> Tuner:
        return Tuner()

    @cached_property
    def _device(self) -> DeviceInfo:
        return self._tuner.describe()

    @property
    def _workspace(self) -> int:
        return self.spec.workspace_mib << 20

    def unavailable(self) -> str | None:
        try:
            return None if self._device.devices else "this process sees no GPU"
        except RuntimeError as error:
            return str(error)

    def devices(self) -> int:
        return self._device.devices

    def worker_environment(self, number: int) -> Mapping[str, str]:
        given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        visible = given or [str(index) for index in range(self.devices())]
        return {"CUDA_VISIBLE_DEVICES": visible[number % len(visible)]}

    def stack(self) -> Stack:
        device = self._device
        return Stack(
            backend=self.name,
            device=device.device,
            units=device.multiprocessors,
            features=(f"capability {device.capability}",),
            libraries={"cublaslt": str(device.cublaslt), "driver": str(device.driver)},
            candidates=f"cublaslt-{CANDIDATES_VERSION}",
            workspace=self._workspace,
        )

    def candidates(self, problem: Problem) -> tuple[str, ...]:
        if self.why_no_candidates(problem) != super().why_no_candidates(problem):
            return ()
        self._open(problem)
        return self._names

    def why_no_candidates(self, problem: Problem) -> str:
        try:
            render_problem(problem)
        except ValueError as error:
            return str(error)
        return super().why_no_candidates(problem)

    def measure(self, problem: Problem, candidate: str) -> float:
        self._open(problem)
        return self._tuner.measure(candidate)

    def _open(self, problem: Problem) -> None:
        if problem == self._problem:
            return
        self._problem = None
        self._names = self._tuner.open(
            render_problem(problem), problem.alpha, problem.beta, self._workspace
        )
        self._problem = problem

    def numerics(self, problem: Problem, candidate: str) -> Numerics:
        self._open(problem)
        found = self._tuner.compare(candidate)
        if found.error is None or found.default_error is None:
            # No reference for this epilogue: only what equals the default is trusted.
            return Numerics.of(found.equal, 1.0, 0.0)
        return Numerics.of(found.equal, found.error, found.default_error)

    def peak(self, type_name: str) -> float:
        return max(self._peak(type_name, size) for size in _PEAK_SIZES)

    def _peak(self, type_name: str, size: int) -> float:
        narrow = type_name in _NARROW
        wide = "f64_r" if type_name == "f64_r" else "f32_r"
        problem = Problem(
            m=size,
            n=size,
            k=size,
            transA="T",
            a_type=type_name,
            # Two matrices of bf8 have no product.
            b_type="f8_r" if narrow else type_name,
            d_type="bf16_r" if narrow else type_name,
            compute_type=wide,
            scale_type=wide,
            scaleA="1" if narrow else "0",
            scaleB="1" if narrow else "0",
            fast_accumulation=narrow,
        )
        fastest = min(self.measure(problem, DEFAULT) for _ in range(_PEAK_SAMPLES))
        return problem.flops / (fastest * 1e6)

    def bandwidth(self) -> float | None:
        return self._tuner.bandwidth()

    def details(self, problem: Problem) -> Mapping[str, Any]:
        if problem != self._problem:
            return {}
        return {"default_algorithm": self._tuner.default()}

    def write(
        self, header: TunedHeader, rows: Sequence[TunedRow], directory: Path
    ) -> Sequence[Path]:
        stack = header.stack
        path = directory / FILE_NAME
        algorithms = AlgorithmHeader(
            cublaslt=stack["libraries"]["cublaslt"],
            device=stack["device"],
            multiprocessors=stack["units"],
            capability=stack["features"][0].removeprefix("capability "),
        )
        write_algorithms(path, algorithms, entries_of(rows))
        return (path,)

    def activate(self, tuned: Path) -> Mapping[str, str]:
        """As the base says.

        Raises:
            UnavailableError: the preloaded library cannot be built here.
        """
        path = tuned.resolve().parent / FILE_NAME
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; it belongs beside {tuned.name}")
        read_algorithms(path)
        preloaded = str(library("libprimus_cublaslt.so"))
        if set(preloaded) & set(" :"):
            raise UnavailableError(
                f"{preloaded}: LD_PRELOAD cannot say a path with a space or a colon. "
                "Fix: set XDG_CACHE_HOME to another directory"
            )
        return {
            "LD_PRELOAD": preloaded,
            "PRIMUS_CUBLASLT_FILE": str(path),
            # torch's plain products go to cublasGemmEx without it, where no algorithm can be given.
            "TORCH_BLAS_PREFER_CUBLASLT": "1",
        }
