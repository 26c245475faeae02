"""The GEMMs of a training, counted in its processes by `libprimus_cublaslt_dump.so`.

cuBLASLt's own log writes a line per call: gigabytes for a few steps of a large model, timed by the
disk, and without alpha. Counting in the process is exact, costs microseconds per call, and says
which calls libcublas made (cublasGemmEx), whose algorithm nothing can replace. Logs from elsewhere
are read by `primus.gemm.formats.cublaslt_log`.
"""

from __future__ import annotations

import os
from pathlib import Path

from primus.errors import ArtifactError
from primus.gemm.cublaslt.build import library
from primus.gemm.cublaslt.problem_text import parse_problem
from primus.gemm.formats.stream import MAX_EXAMPLES, Dump
from primus.gemm.problem import Problem

_FORMAT = "primus-cublaslt-dump 1"


def environment(directory: Path) -> dict[str, str | None]:
    """Variables under which each process of a training counts its calls into `directory`.

    None: the variable must be unset.

    Raises:
        UnavailableError: the library cannot be built.
    """
    return {
        "LD_PRELOAD": preload(library("libprimus_cublaslt_dump.so")),
        "PRIMUS_CUBLASLT_DUMP": str(directory.resolve()),
        "PRIMUS_CUBLASLT_FILE": None,
        # torch's plain products go to cublasGemmEx without it, where no algorithm can be given.
        "TORCH_BLAS_PREFER_CUBLASLT": "1",
    }


def preload(path: Path) -> str:
    """LD_PRELOAD with the library and whatever the user preloads already."""
    return ":".join(filter(None, (str(path), os.environ.get("LD_PRELOAD", ""))))


def read(directory: Path) -> Dump[tuple[Problem, str]]:
    """Every call that the processes counted: the problem and the name of the algorithm.

    Calls that no problem can say are skipped lines; those that libcublas made do not count.

    Raises:
        ArtifactError: a file is torn, or there is none.
    """
    dump: Dump[tuple[Problem, str]] = Dump()
    paths = sorted(directory.glob("cublaslt-*.calls"))
    if not paths:
        raise ArtifactError(
            f"{directory}: no process called cuBLASLt, or none ended by itself. "
            "Fix: gemm_tuning.shapes: trace"
        )
    for path in paths:
        _read_file(path, dump)
    return dump


def _read_file(path: Path, dump: Dump[tuple[Problem, str]]) -> None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read the dump: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is not text: {error}") from error
    if lines[:1] != [_FORMAT] or lines[-1:] != ["end"]:
        raise ArtifactError(f"{path}: torn, or not a dump of cuBLASLt's calls")
    for number, line in enumerate(lines[1:-1], start=2):
        head, _, rest = line.partition(" ")
        if head == "cublas":
            if rest != "0":
                dump.examples.append(f"{path}: {rest} calls by cublasGemmEx are not counted")
            continue
        dump.lines += 1
        try:
            if head == "skipped":
                raise ValueError(f"calls that cannot be tuned: {rest}")
            calls, name, problem = _call(line)
        except ValueError as error:
            dump.skipped += 1
            if len(dump.examples) < MAX_EXAMPLES:
                dump.examples.append(f"{path}:{number}: {error}")
            continue
        dump.calls[problem, name] += calls


def _call(line: str) -> tuple[int, str, Problem]:
    words = line.split(" ")
    if len(words) < 5 or words[-1] != ";":
        raise ValueError("torn")
    calls, name, alpha, beta, *problem = words[:-1]
    return (
        int(calls),
        name,
        parse_problem(
            " ".join(problem),
            alpha=float(alpha.removeprefix("alpha=")),
            beta=float(beta.removeprefix("beta=")),
        ),
    )
