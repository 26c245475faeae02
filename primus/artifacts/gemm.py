"""shapes.jsonl and tuned.jsonl: a header line, then one line per GEMM problem.

A problem stands here as plain values (`primus.gemm.problem.Problem.to_json`) beside its one-line
text and its FLOPs, so that a reader of these files needs nothing of `primus.gemm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from primus.artifacts.steps import ProcessChoice, Steps
from primus.errors import ArtifactError
from primus.files import atomic_write, canonical_json, parse_json

Tokens = Literal["n", "k"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapesHeader(_Line):
    """First line of shapes.jsonl.

    Attributes:
        source: "record" from training steps, "trace" without memory or device.
        model: what the shapes are of; free.
        calls, flops: of all problems together, per microbatch on one rank.
    """

    kind: Literal["shapes"] = "shapes"
    schema_version: Literal[1] = 1
    source: Literal["record", "trace"]
    per: Literal["microbatch"] = "microbatch"
    model: dict[str, Any]
    problems: int
    calls: int
    flops: int


class ShapeRow(_Line):
    """One problem of a training step.

    Attributes:
        calls: per microbatch; `phases` splits them into "forward" and "backward".
        flops: of one call.
        tokens: the dimension that varies with the number of tokens which experts receive; the
            problem holds its mean. Null where every call has these sizes.
    """

    problem: dict[str, Any]
    text: str
    calls: int
    phases: dict[str, int]
    flops: int
    tokens: Tokens | None = None


class TunedHeader(_Line):
    """First line of tuned.jsonl.

    Attributes:
        stack: device and libraries that the times hold for (`primus.gemm.stack.Stack`).
        settings: what the choice depends on.
        shapes_sha256: of the shapes.jsonl that was tuned.
        peak_tflops: measured `torch.mm` maximum in 10^12 FLOP/s, by GEMM type ("bf16_r").
        gb_per_s: measured bandwidth in 10^9 bytes per second, or null.
        coverage: share of the estimated GEMM time whose problems have been timed.
        winners, failed: problems with a kernel that is not the default; without a time.
        default_us, tuned_us: GEMM time of a microbatch over the timed problems.
        stopped: why the search ended.
        steps: whole training steps with and without the tuned kernels; null where none were asked
            for.
        process: the environment of the ranks that those steps chose; null where they chose none.
    """

    kind: Literal["tuned"] = "tuned"
    schema_version: Literal[1] = 1
    backend: str
    stack: dict[str, Any]
    settings: dict[str, Any]
    shapes_sha256: str
    peak_tflops: dict[str, float]
    coverage: float
    problems: int
    timed: int
    winners: int
    failed: int
    default_us: float
    tuned_us: float
    stopped: Literal["complete", "budget", "disabled"]
    gb_per_s: float | None = None
    steps: Steps | None = None
    process: ProcessChoice | None = None


class TunedRow(_Line):
    """What was found for one problem; times in microseconds per call, medians.

    Attributes:
        default_us: null where the problem has not been timed.
        candidate: what training uses; "default" where nothing better was found.
        gain: share of the default's time that the candidate saves.
        numerics: of the candidate against the default: "exact" (bit-equal), "rounding"
            (another order of the same additions), "lossy" (lower precision).
        reason: why this candidate.
        others: the times of the fastest candidates that were not chosen.
        tokens: the dimension that varies in training; the nearest row serves other sizes.
        details: what the backend keeps about the problem for its own file.
    """

    problem: dict[str, Any]
    text: str
    calls: int
    phases: dict[str, int]
    flops: int
    default_us: float | None
    candidate: str
    tuned_us: float | None
    gain: float
    numerics: Literal["exact", "rounding", "lossy"]
    reason: str
    others: dict[str, float]
    tokens: Tokens | None = None
    details: dict[str, Any] = {}

    @property
    def times(self) -> dict[str, float]:
        """Microseconds per call by candidate, of those that are known."""
        own = {"default": self.default_us, self.candidate: self.tuned_us}
        return self.others | {name: us for name, us in own.items() if us is not None}


Header = TypeVar("Header", bound=_Line)
Row = TypeVar("Row", bound=_Line)


def save_lines(path: Path | str, header: _Line, rows: Iterable[_Line]) -> None:
    """Write the header and the rows, in the order given, with sorted keys; atomic."""
    with atomic_write(path) as stream:
        for line in (header, *rows):
            stream.write(canonical_json(line.model_dump(mode="json")) + "\n")


def load_shapes(path: Path | str) -> tuple[ShapesHeader, list[ShapeRow]]:
    """Read shapes.jsonl.

    Raises:
        ArtifactError: the file is missing, torn, of another kind or version, or a line is wrong.
    """
    header, rows = _load(path, ShapesHeader, ShapeRow)
    _check_count(path, header.problems, len(rows))
    return header, rows


def load_tuned(path: Path | str) -> tuple[TunedHeader, list[TunedRow]]:
    """Read tuned.jsonl.

    Raises:
        ArtifactError: the file is missing, torn, of another kind or version, or a line is wrong.
    """
    header, rows = _load(path, TunedHeader, TunedRow)
    _check_count(path, header.problems, len(rows))
    return header, rows


def _load(path: Path | str, header: type[Header], row: type[Row]) -> tuple[Header, list[Row]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is not text: {error}") from error
    if not lines:
        raise ArtifactError(f"{path}: is empty")
    head = _line(path, 1, lines[0], header)
    return head, [_line(path, n, line, row) for n, line in enumerate(lines[1:], start=2)]


def _line(path: Path | str, number: int, text: str, model: type[Row]) -> Row:
    try:
        return model.model_validate(parse_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}:{number}: {where}: {first['msg']}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}:{number}: not JSON: {error}") from error


def _check_count(path: Path | str, wanted: int, found: int) -> None:
    if wanted != found:
        raise ArtifactError(f"{path}: has {found} problems, its header says {wanted}")
