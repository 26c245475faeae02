"""`tune_hipblas_gemm_results.txt`: what HIPBLASLT_TUNING_FILE writes, the override file reads.

    Git Version: de5c1aebb6
        transA,transB,…,us,solution_index,gcnArchName,CUs
        T,N,…,39.8689,303082,gfx950:sramecc+:xnack-,256

Each entry is a line of names and a line of values, both indented by four spaces. The first
releases with such files write the values alone. Columns that are not known here are kept.
Source: `argument_model.hpp` and `UserDrivenTuningParser.cpp` of ROCm/hipBLASLt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from primus.errors import ArtifactError
from primus.files import atomic_write
from primus.gemm.hipblaslt.output import INDEX_COLUMNS

FILE_NAME = "tune_hipblas_gemm_results.txt"
_PREFIX = "Git Version: "
_INDENT = "    "
# Their values grow with speed, that of `us` shrinks.
_RATES = ("hipblaslt-Gflops", "hipblaslt-GB/s")


@dataclass(frozen=True)
class Entry:
    """One problem and its solution.

    Attributes:
        names: of the columns; empty where the release writes none and they are not known.
        values: as written.
        headed: whether the names stand in the file.
    """

    names: tuple[str, ...]
    values: tuple[str, ...]
    headed: bool = True

    @property
    def columns(self) -> dict[str, str]:
        """The values by name."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def solution_index(self) -> int | None:
        """What the override picks; None where no column says it."""
        columns = self.columns if self.names else {}
        return next((int(columns[n]) for n in INDEX_COLUMNS if n in columns), None)

    def with_solution(self, index: int, us: float, names: Mapping[str, str]) -> Entry:
        """The same problem with another solution: its index, its time, and the rates from it.

        Args:
            us: microseconds of one call.
            names: solution_name and kernel_name, for releases that have such columns.
        """
        columns = self.columns
        if not any(name in columns for name in INDEX_COLUMNS):
            raise ArtifactError("the tool's entry has no column solution_index")
        old = float(columns["us"])
        new = {name: str(index) for name in INDEX_COLUMNS} | {"us": _number(us)}
        new |= {name: _number(float(columns[name]) * old / us) for name in _RATES & columns.keys()}
        new |= {name: text for name, text in names.items() if text}
        return replace(self, values=tuple(new.get(n, v) for n, v in columns.items()))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"names": list(self.names), "values": list(self.values), "headed": self.headed}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` wrote."""
        return cls(tuple(content["names"]), tuple(content["values"]), content["headed"])


@dataclass(frozen=True)
class Results:
    """A whole file."""

    git_version: str
    entries: tuple[Entry, ...] = field(default=())

    def render(self) -> str:
        """The file's text; for what `parse_results` read, the same bytes."""
        lines = [_PREFIX + self.git_version]
        for entry in self.entries:
            if entry.headed:
                lines.append(_INDENT + ",".join(entry.names))
            lines.append(_INDENT + ",".join(entry.values))
        return "".join(line + "\n" for line in lines)


def parse_results(text: str, source: str) -> Results:
    """Read a file's text.

    Raises:
        ArtifactError: another format, or torn; names the line in `source`.
    """
    first, *lines = text.split("\n")
    if not first.startswith(_PREFIX):
        raise ArtifactError(f"{source}:1: does not start with {_PREFIX.strip()!r}")
    if not lines or lines.pop() != "":
        raise ArtifactError(f"{source}: its last line is torn")
    entries: list[Entry] = []
    names: tuple[str, ...] = ()
    fresh = False
    for number, line in enumerate(lines, start=2):
        cells = tuple(line[len(_INDENT) :].split(","))
        if not line.startswith(_INDENT) or len(cells) < 2:
            raise ArtifactError(f"{source}:{number}: is no entry: {line[:60]!r}")
        if "transA" in cells:
            if fresh or len(set(cells)) != len(cells):
                raise ArtifactError(f"{source}:{number}: names without values, or twice")
            names, fresh = cells, True
            continue
        if names and len(names) != len(cells):
            raise ArtifactError(f"{source}:{number}: {len(names)} names, {len(cells)} values")
        entries.append(Entry(names, cells, fresh))
        fresh = False
    if fresh:
        raise ArtifactError(f"{source}:{len(lines) + 1}: names without values")
    return Results(first[len(_PREFIX) :], tuple(entries))


def load_results(path: Path) -> Results:
    """Read a file.

    Raises:
        ArtifactError: missing, not text, torn or of another format.
    """
    try:
        return parse_results(path.read_bytes().decode("utf-8"), str(path))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is not text: {error}") from error


def save_results(path: Path, results: Results) -> None:
    """Write a file, all of it or nothing."""
    with atomic_write(path) as stream:
        stream.write(results.render())


def _number(value: float) -> str:
    """As C++ prints a double: six significant digits."""
    return f"{value:g}"
