"""The file of tuned algorithms, `cublaslt_algorithms.txt` beside tuned.jsonl.

One line per problem, `<algorithm or default> [tokens=n|k] <problem> ;`, after a header with the
library and the device for which it holds. `native/tuned_file.cpp` reads it in training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.gemm import Tokens, TunedRow
from primus.errors import ArtifactError
from primus.files import atomic_write
from primus.gemm.backends.base import DEFAULT
from primus.gemm.cublaslt.problem_text import render_problem
from primus.gemm.problem import Problem

FILE_NAME = "cublaslt_algorithms.txt"
_FORMAT = "primus-cublaslt 1"


@dataclass(frozen=True)
class AlgorithmHeader:
    """What the algorithms hold for.

    Attributes:
        cublaslt: as cublasLtGetVersion says it, 130102 for 13.1.2.
        capability: "9.0".
    """

    cublaslt: str
    device: str
    multiprocessors: int
    capability: str


@dataclass(frozen=True)
class Entry:
    """One line: the algorithm of a problem as the library sees it.

    Attributes:
        problem: `render_problem` of it.
        algorithm: TunableOp's name, or "default".
        tokens: the dimension that varies; the entry serves other sizes of it, too.
        note: what a reader of the file should know; empty as a rule.
    """

    problem: str
    algorithm: str
    tokens: Tokens | None = None
    note: str = ""


def entries_of(rows: Sequence[TunedRow]) -> list[Entry]:
    """The lines for tuned rows, in their order.

    The library is not told alpha and beta, so that rows which differ only there share a line. The
    algorithm with the least time over all their calls wins, of those that won a row and were timed
    in every one. Problems that cuBLASLt's descriptors cannot say have no line.
    """
    groups: dict[str, list[TunedRow]] = {}
    for row in rows:
        try:
            text = render_problem(Problem.from_json(row.problem))
        except ValueError:
            continue
        groups.setdefault(text, []).append(row)
    return [_entry(text, group) for text, group in groups.items()]


def _entry(text: str, group: Sequence[TunedRow]) -> Entry:
    tokens = next((row.tokens for row in group if row.tokens), None)
    algorithm, note = group[0].candidate, ""
    if len({row.candidate for row in group}) > 1:
        algorithm = _least(group)
        note = f"{len(group)} problems that differ in alpha or beta share this line"
    return Entry(text, algorithm, tokens, note)


def _least(group: Sequence[TunedRow]) -> str:
    """The choice of some row with the least calls x time; the default where none is comparable."""
    timed = [row for row in group if row.default_us is not None]
    times = [row.times for row in timed]
    candidates = [row.candidate for row in timed]
    common = [c for c in (DEFAULT, *candidates) if all(c in t for t in times)]

    def total(candidate: str) -> float:
        return sum(row.calls * t[candidate] for row, t in zip(timed, times, strict=True))

    return min(common, key=total) if timed and common else DEFAULT


def write_algorithms(path: Path, header: AlgorithmHeader, entries: Sequence[Entry]) -> None:
    """Write the file; equal bytes for equal content."""
    with atomic_write(path) as stream:
        stream.write("# cuBLASLt's algorithms by problem; primus.tune writes this file and\n")
        stream.write("# libprimus_cublaslt.so reads it in training\n")
        stream.write(f"{_FORMAT}\n")
        stream.write(f"cublaslt {header.cublaslt}\n")
        stream.write(f"device {header.device}\n")
        stream.write(f"multiprocessors {header.multiprocessors}\n")
        stream.write(f"capability {header.capability}\n")
        stream.write(f"problems {len(entries)}\n")
        for entry in entries:
            if entry.note:
                stream.write(f"# {entry.note}:\n")
            tokens = f"tokens={entry.tokens} " if entry.tokens else ""
            stream.write(f"{entry.algorithm} {tokens}{entry.problem} ;\n")


def read_algorithms(path: Path) -> tuple[AlgorithmHeader, list[Entry]]:
    """Read what `write_algorithms` wrote; notes are not read.

    Raises:
        ArtifactError: the file is missing, torn or of another version.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is not text: {error}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    head = dict(line.partition(" ")[::2] for line in lines[1:6])
    names = ["cublaslt", "device", "multiprocessors", "capability", "problems"]
    if lines[:1] != [_FORMAT] or list(head) != names:
        raise ArtifactError(f"{path}: not a file of cuBLASLt algorithms")
    entries = [_read_entry(path, line) for line in lines[6:]]
    if head["problems"] != str(len(entries)):
        raise ArtifactError(
            f"{path}: has {len(entries)} problems, its header says {head['problems']}"
        )
    units = head["multiprocessors"]
    if not re.fullmatch(r"[0-9]{1,6}", units):
        raise ArtifactError(f"{path}: multiprocessors {units[:60]}: not a number")
    return AlgorithmHeader(
        head["cublaslt"], head["device"], int(units), head["capability"]
    ), entries


def _read_entry(path: Path, line: str) -> Entry:
    algorithm, _, rest = line.partition(" ")
    if not rest.endswith(" ;"):
        raise ArtifactError(f"{path}: a torn line: {line[:60]}")
    problem = rest.removesuffix(" ;")
    tokens: Tokens | None = None
    if problem.startswith("tokens=n "):
        tokens = "n"
    elif problem.startswith("tokens=k "):
        tokens = "k"
    return Entry(problem.removeprefix(f"tokens={tokens} "), algorithm, tokens)
