"""tuned.jsonl to and from what the search found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.gemm import TunedHeader, TunedRow, load_tuned, save_lines
from primus.errors import StackMismatchError
from primus.gemm.backends.base import DEFAULT
from primus.gemm.problem import Problem
from primus.gemm.search import SearchResult, SearchSettings, Tuned
from primus.gemm.stack import Stack, differences


def write_tuned(
    path: Path | str, result: SearchResult, settings: SearchSettings, shapes_sha256: str
) -> tuple[TunedHeader, list[TunedRow]]:
    """Write tuned.jsonl, equal bytes for equal times and settings; return what it holds."""
    rows = [_row(tuned) for tuned in result.tuned]
    header = TunedHeader(
        backend=result.stack.backend,
        stack=result.stack.to_json(),
        settings={
            "allow_lossy": settings.allow_lossy,
            "budget_seconds": settings.budget_seconds,
            "coverage": settings.coverage,
            "expert_token_factors": list(settings.expert_token_factors),
            "min_gain": settings.min_gain,
            "problem_timeout_seconds": settings.problem_timeout_seconds,
        },
        shapes_sha256=shapes_sha256,
        peak_tflops=result.peak_tflops,
        gb_per_s=result.gb_per_s,
        coverage=result.coverage,
        problems=len(rows),
        timed=sum(row.default_us is not None for row in rows),
        winners=sum(row.candidate != DEFAULT for row in rows),
        failed=result.failed,
        default_us=_total(row.calls * (row.default_us or 0.0) for row in rows),
        tuned_us=_total(row.calls * (row.tuned_us or 0.0) for row in rows),
        stopped=result.stopped,
    )
    save_lines(path, header, rows)
    return header, rows


def _total(values: Iterable[float]) -> float:
    return round(sum(values), 3)


def _row(tuned: Tuned) -> TunedRow:
    shape, choice = tuned.shape, tuned.choice
    return TunedRow(
        problem=shape.problem.to_json(),
        text=str(shape.problem),
        calls=shape.calls,
        phases=shape.phases,
        flops=shape.problem.flops,
        default_us=choice.default_us,
        candidate=choice.candidate,
        tuned_us=choice.tuned_us,
        gain=choice.gain,
        numerics=choice.numerics,
        reason=choice.reason,
        others=choice.others,
        tokens=shape.tokens,
        details=dict(tuned.details),
    )


@dataclass(frozen=True)
class TunedResult:
    """A tuned.jsonl that has been read.

    Attributes:
        path: where it was read from, for messages.
        candidates: the chosen kernel's name per problem.
    """

    path: Path
    header: TunedHeader
    rows: Sequence[TunedRow]
    candidates: dict[Problem, str]

    @classmethod
    def load(cls, path: Path | str) -> TunedResult:
        """Read tuned.jsonl.

        Raises:
            ArtifactError: the file is missing, torn or of another version.
        """
        header, rows = load_tuned(path)
        candidates = {Problem.from_json(row.problem): row.candidate for row in rows}
        return cls(Path(path), header, rows, candidates)

    def check_stack(self, stack: Stack) -> None:
        """Refuse a result whose times do not hold here.

        Raises:
            StackMismatchError: device, threads, a library or the candidates differ; names each
                value in the file and here.
        """
        different = differences(self.header.stack, stack.to_json())
        if different:
            raise StackMismatchError(
                f"{self.path}: tuned on another stack: {'; '.join(different)}. "
                "Fix: tune on this machine (snakemake tune_<experiment>), "
                "or set gemm_tuning.enabled to false"
            )
