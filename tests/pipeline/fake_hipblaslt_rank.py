"""A rank on a CPU whose GEMMs a fake hipBLASLt logs, as the library would on an AMD GPU.

What torch's dispatcher sees is written as bench lines to HIPBLASLT_LOG_FILE, with the solution
that HIPBLASLT_TUNING_OVERRIDE_FILE names for the problem or an index of its own. Beside them stand
what a real log has too: a probe before the steps, and lines of other kinds.
"""

from __future__ import annotations

import os
from pathlib import Path

from primus.gemm.formats.bench_line import BenchLine, Run
from primus.gemm.hipblaslt.results_file import load_results
from primus.gemm.problem import Problem
from primus.gemm.record import GemmRecorder
from primus.watched_rank import main

OWN_CHOICE = 7
PROBE = Problem(m=16, n=16, k=16)
# What the library would hand to a kernel of its own, where torch sees one plain product.
UNSEEN = Problem(m=48, n=48, k=48, batch_count=2, stride_a=2304, stride_b=2304, stride_c=2304)


def override() -> dict[tuple[str, ...], int]:
    """Solution per problem, by the library's own key."""
    path = os.environ.get("HIPBLASLT_TUNING_OVERRIDE_FILE")
    if path is None:
        return {}
    names = ("transA", "transB", "m", "n", "k")
    return {
        tuple(entry.columns[name] for name in names): int(entry.columns["solution_index"])
        for entry in load_results(Path(path)).entries
    }


def log(recorder: GemmRecorder, path: Path, iterations: int) -> None:
    """Write the file of this process."""
    solutions = override()
    lines = ["some other layer's message", BenchLine.of(PROBE).render()]
    lines += [BenchLine.of(UNSEEN).render()] * iterations
    for problem, calls in recorder.counts.items():
        key = (problem.transA, problem.transB, *map(str, (problem.m, problem.n, problem.k)))
        run = Run(algo_method="index", solution_index=solutions.get(key, OWN_CHOICE))
        lines += [BenchLine.of(problem, run).render()] * calls
    path.write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    assert os.environ["HIPBLASLT_LOG_MASK"] == "32"
    assert "HIPBLASLT_LOG_LEVEL" not in os.environ
    with GemmRecorder() as fake:
        main()
    # The library reads it when torch loads it, by which time the rank has put its host in.
    name = os.environ["HIPBLASLT_LOG_FILE"].replace("%i", str(os.getpid()))
    log(fake, Path(name), iterations=2)
