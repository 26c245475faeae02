"""shapes.jsonl to and from GEMM problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from primus.artifacts.gemm import ShapeRow, ShapesHeader, Tokens, load_shapes, save_lines
from primus.errors import TrainingError
from primus.gemm.problem import Problem

# "step": a library's log does not say which.
Phase = Literal["forward", "backward", "step"]
Calls = Mapping[tuple[Problem, Phase], int]


@dataclass(frozen=True)
class Shape:
    """A problem and how often a microbatch calls it, in all and per phase.

    Attributes:
        tokens: the size that varies with the number of tokens which experts receive; the problem
            has its mean.
    """

    problem: Problem
    calls: int
    phases: dict[str, int]
    tokens: Tokens | None = None


def write_shapes(
    path: Path | str,
    calls: Calls,
    *,
    source: Literal["record", "trace"],
    model: Mapping[str, Any],
    microbatches: int = 1,
    varying: Mapping[Problem, Tokens] | None = None,
) -> list[Shape]:
    """Write shapes.jsonl, most FLOPs first, and return what it holds.

    Args:
        calls: as `GemmRecorder.calls` has them.
        model: summary of the model, free.
        microbatches: how many were recorded; the file counts calls per microbatch.
        varying: problems of experts and their size that varies.

    Raises:
        TrainingError: nothing was recorded, or the calls of a problem are not the same in every
            microbatch.
    """
    if not calls:
        raise TrainingError("no GEMM was recorded")
    phases: dict[Problem, dict[str, int]] = {}
    for (problem, phase), count in calls.items():
        if count % microbatches:
            raise TrainingError(
                f"{problem}: {count} {phase} calls in {microbatches} microbatches: not the same "
                "in each"
            )
        phases.setdefault(problem, {})[phase] = count // microbatches
    shapes = [
        Shape(
            problem, sum(split.values()), dict(sorted(split.items())), (varying or {}).get(problem)
        )
        for problem, split in phases.items()
    ]
    shapes.sort(key=lambda s: (-s.problem.flops * s.calls, s.problem.sort_key()))
    header = ShapesHeader(
        source=source,
        model=dict(model),
        problems=len(shapes),
        calls=sum(s.calls for s in shapes),
        flops=sum(s.calls * s.problem.flops for s in shapes),
    )
    save_lines(path, header, [_row(shape) for shape in shapes])
    return shapes


def read_shapes(path: Path | str) -> tuple[ShapesHeader, list[Shape]]:
    """Read shapes.jsonl.

    Raises:
        ArtifactError: the file is missing, torn or of another version.
    """
    header, rows = load_shapes(path)
    return header, [Shape(Problem.from_json(r.problem), r.calls, r.phases, r.tokens) for r in rows]


def _row(shape: Shape) -> ShapeRow:
    return ShapeRow(
        problem=shape.problem.to_json(),
        text=str(shape.problem),
        calls=shape.calls,
        phases=shape.phases,
        flops=shape.problem.flops,
        tokens=shape.tokens,
    )
