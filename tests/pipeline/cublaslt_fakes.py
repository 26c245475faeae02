"""Builds the fakes of the CUDA driver and of cuBLASLt, and runs callers under our libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.gemm.cublaslt.algo_file import AlgorithmHeader, Entry, write_algorithms
from primus.gemm.cublaslt.problem_text import render_problem
from primus.gemm.problem import Problem

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "cublaslt"
HEADER = AlgorithmHeader("130102", "Fake GPU", 132, "9.0")


def named(id_: int, tile: int, rest: str) -> str:
    """A name in TunableOp's spelling."""
    return f"Gemm_Cublaslt_id_{id_}_tile_{tile}_{rest}"


# As planted in fake_cublaslt.cpp.
DEFAULT_ALGORITHM = named(66, 20, "stages_35_splitk_1_red_0_swizzle_0_custom_0_inner_0_cluster_2")
FAST = named(66, 24, "stages_36_splitk_1_red_0_swizzle_1_custom_0_inner_0_cluster_3")
SPLIT = named(67, 15, "stages_35_splitk_4_red_2_swizzle_0_custom_3_inner_0_cluster_2")
LOSSY = named(68, 11, "stages_12_splitk_1_red_0_swizzle_0_custom_0_inner_0_cluster_0")
ALIGNED = named(69, 11, "stages_12_splitk_1_red_0_swizzle_0_custom_0_inner_0_cluster_0")
INNER = named(70, 18, "stages_12_splitk_1_red_0_swizzle_0_custom_0_inner_1_cluster_0")
SPLIT_WORKSPACE = 4 << 20


def build_fakes(directory: Path) -> None:
    """libcuda.so.1, libcublasLt.so.13 with versioned symbols, and a library linked against it."""
    common = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    for sources, output, options in (
        ("fake_cuda.cpp", "libcuda.so.1", ["-Wl,-soname,libcuda.so.1"]),
        (
            "fake_cublaslt.cpp",
            "libcublasLt.so.13",
            [
                "-Wl,-soname,libcublasLt.so.13",
                f"-Wl,--version-script={SOURCES / 'fake.map'}",
                "-ldl",
            ],
        ),
        ("caller.cpp", "libcaller.so", [str(directory / "libcublasLt.so.13")]),
    ):
        command = [*common, str(SOURCES / sources), "-o", str(directory / output), *options]
        subprocess.run(command, check=True, timeout=120)


@dataclass(frozen=True)
class Fakes:
    """Where the fakes and our libraries lie."""

    directory: Path
    use: Path
    dump: Path

    def environment(self, **more: str | None) -> dict[str, str]:
        """This process's environment under the fakes; None takes a variable out."""
        base = {**os.environ, "LD_LIBRARY_PATH": str(self.directory), "PYTHONPATH": str(ROOT)}
        for name in ("LD_PRELOAD", "PRIMUS_CUBLASLT_FILE", "CUDA_VISIBLE_DEVICES"):
            base.pop(name, None)
        return {name: value for name, value in {**base, **more}.items() if value is not None}

    def call(
        self,
        calls: Sequence[Mapping[str, Any]],
        *,
        preload: Sequence[Path] | None = None,
        threads: int = 1,
        fork: bool = False,
        **variables: str | None,
    ) -> dict[str, Any]:
        """Make calls in a process of their own, with `use` preloaded; see caller.py."""
        preloaded = [self.use] if preload is None else preload
        done = subprocess.run(
            [sys.executable, str(SOURCES / "caller.py")],
            input=json.dumps({"threads": threads, "calls": calls, "fork": fork}),
            env=self.environment(LD_PRELOAD=":".join(map(str, preloaded)), **variables),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        answer["stderr"] = done.stderr
        return answer


def call(problem: Problem, **more: Any) -> dict[str, Any]:
    """One call of caller.py."""
    return {"problem": problem.to_json(), **more}


def write_file(path: Path, entries: Mapping[Problem, str], header: AlgorithmHeader = HEADER) -> str:
    """A tuned file; its path."""
    lines = [Entry(render_problem(problem), name) for problem, name in entries.items()]
    write_algorithms(path, header, lines)
    return str(path)
