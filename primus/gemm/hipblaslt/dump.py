"""hipBLASLt's own log of a training: one bench line per call, one file per process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from primus.gemm.formats.bench_line import BenchLine
from primus.gemm.formats.stream import Dump, read_dump
from primus.gemm.problem import Problem

_PROGRAM = "hipblaslt-bench "
_MASK_OF_BENCH_LINES = "32"


def environment(directory: Path, override: Path | None = None) -> dict[str, str | None]:
    """Variables under which each process of a training logs its calls into `directory`.

    None: the variable must be unset. An override file, even an empty name of one, steers what is
    logged; a log level makes the library ignore the mask.

    Args:
        override: the tuned file that a verifying dump runs under.
    """
    return {
        "HIPBLASLT_LOG_MASK": _MASK_OF_BENCH_LINES,
        # The library puts the process's number for %i, a rank its host's name for %h before that:
        # without these, ranks write over each other.
        "HIPBLASLT_LOG_FILE": str(directory / "hipblaslt_%h_%i.log"),
        "HIPBLASLT_LOG_LEVEL": None,
        "HIPBLASLT_TUNING_FILE": None,
        "HIPBLASLT_TUNING_MODE": None,
        "HIPBLASLT_TUNING_OVERRIDE_FILE": str(override) if override is not None else None,
    }


def read(directory: Path) -> Dump[tuple[Problem, str]]:
    """Every call that the processes logged: the problem and the solution that it ran.

    The solution's name is `solution_<index>`; empty where the release logs no index.

    Raises:
        ArtifactError: too many lines are damaged.
    """
    return read_dump(sorted(directory.glob("hipblaslt_*.log")), _call)


def _call(line: str) -> tuple[Problem, str] | None:
    if _PROGRAM not in line:
        return None
    parsed = BenchLine.parse(line[line.index(_PROGRAM) :])
    index = parsed.run.solution_index
    return _plain(parsed.problem), f"solution_{index}" if index >= 0 else ""


def _plain(problem: Problem) -> Problem:
    """The problem as a trace names it, so that both find the same times in the store.

    The library logs `--any_stride`, and a type of a bias, where there is nothing to either.
    """
    bias_type = problem.bias_type if problem.bias_vector else ""
    return replace(problem, any_stride=False, bias_type=bias_type)
