"""Shapes from a GPU library's own log of training steps, held against what torch saw of them."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from primus.config.frozen import StageSettings
from primus.gemm.library import LibraryDump, Logged
from primus.gemm.shapes import Shape, write_shapes
from primus.watched_steps import RANK, keep_logs_of, run_steps


def dump_by_library(
    settings: StageSettings, output: Path, library: LibraryDump, *, rank_module: str = RANK
) -> list[Shape]:
    """Record `gemm_tuning.record_iters` steps and write shapes.jsonl from the library's log.

    The log is the record: it also has what no dispatcher sees, such as the GEMMs of
    transformer-engine. It does not say whether a call is of forward or of backward.

    Raises:
        TrainingError: the ranks failed, or the log does not fit the steps.
        ArtifactError: too many lines of the log are damaged.
    """
    iterations = settings.gemm_tuning.record_iters
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        steps = run_steps(
            settings,
            directory,
            iterations=iterations,
            environment=library.environment(directory),
            rank_module=rank_module,
        )
        keep_logs_of(directory, steps.processes)
        dump = library.read(directory)
    logged = Logged.of(dump, iterations)
    for line in (*dump.examples, *logged.against(steps.recorded)):
        print(line, flush=True)
    shapes = write_shapes(
        output,
        Counter({(problem, "step"): number for problem, number in logged.calls.items()}),
        source="record",
        model=settings.identity,
        varying=logged.varying(steps.recorded),
    )
    number = sum(shape.calls for shape in shapes)
    print(
        f"record of the library: {number} GEMMs per micro-batch, {len(shapes)} distinct problems; "
        f"{logged.skipped} of {logged.lines} lines skipped"
    )
    return shapes
