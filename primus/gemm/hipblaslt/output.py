"""What hipblaslt-bench prints, read by the names of its columns.

    hipBLASLt version: 100200
    hipBLASLt git version: de5c1aebb6
    Device ID 0 : AMD Instinct MI350X gfx950:sramecc+:xnack-
    [0]:transA,transB,…,hipblaslt-Gflops,hipblaslt-GB/s,us
        T,N,…,323283,819.066,23.2496
        --Solution index: 300119
        --Solution name:  Cijk_…
        --kernel name:    Cijk_…
    Winner:
    [0]:…

The number in brackets is the solution's place in the heuristic's order. Which columns there are
changes from release to release. Source: `argument_model.hpp` and `client.cpp` of ROCm/hipBLASLt
at October 2024, of early 2025 (the index's column is called `soulution_index`), and of
ROCm/rocm-libraries in 2026.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_HEADER = re.compile(r"\[(\d{1,9})\]:(.+)$")
_NOTE = re.compile(r"--(Solution index|Solution name|kernel name):\s*(\S.*)$")
_VERSION = re.compile(r"hipBLASLt version:\s*(\S+)")
_GIT_VERSION = re.compile(r"hipBLASLt git version:\s*(\S+)")
_DEVICE = re.compile(r"Device ID \d+ : .*?\b(gfx[0-9a-f]+(?::[A-Za-z0-9]+[+-])*)\s*$")
INDEX_COLUMNS = ("solution_index", "soulution_index")


@dataclass(frozen=True)
class BenchRow:
    """One solution's time.

    Attributes:
        place: of the solution in the heuristic's order.
        columns: the printed values by name, in the printed order.
        us: microseconds of one call.
        solution_index: None where nothing names it.
    """

    place: int
    columns: dict[str, str]
    us: float
    solution_index: int | None
    solution_name: str = ""
    kernel_name: str = ""


@dataclass(frozen=True)
class BenchOutput:
    """All that was understood of one run of the tool.

    Attributes:
        rows: one per solution that ran, in the printed order; the winner's repetition apart.
        malformed: rows that could not be read, each with the reason.
    """

    version: str = ""
    git_version: str = ""
    device: str = ""
    rows: tuple[BenchRow, ...] = ()
    winner: BenchRow | None = None
    malformed: tuple[str, ...] = ()


@dataclass
class _Pending:
    """A row whose lines are still coming."""

    place: int
    names: list[str]
    winner: bool
    values: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


class _Reader:
    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self.rows: list[BenchRow] = []
        self.winner: BenchRow | None = None
        self.malformed: list[str] = []
        self._row: _Pending | None = None
        self._winner_next = False

    def line(self, text: str) -> None:
        header = _HEADER.match(text.strip())
        if header is not None:
            self.finish()
            names = header[2].strip().split(",")
            self._row = _Pending(int(header[1]), names, self._winner_next)
            self._winner_next = False
        elif text.strip() == "Winner:":
            self.finish()
            self._winner_next = True
        elif self._row is not None and not self._row.values and _are_values(self._row, text):
            self._row.values = text.strip().split(",")
        elif self._row is not None and (note := _NOTE.search(text)):
            self._row.notes.setdefault(note[1], note[2].strip())
        else:
            for name, pattern in _FACTS.items():
                if found := pattern.search(text):
                    self.facts.setdefault(name, found[1])

    def finish(self) -> None:
        pending, self._row = self._row, None
        if pending is None:
            return
        try:
            row = _row(pending)
        except ValueError as error:
            self.malformed.append(f"[{pending.place}]: {error}")
            return
        if pending.winner:
            self.winner = row
        else:
            self.rows.append(row)


_FACTS = {"version": _VERSION, "git_version": _GIT_VERSION, "device": _DEVICE}


def parse_output(lines: Iterable[str]) -> BenchOutput:
    """Read the tool's output, also one that was cut off: rows that are whole count.

    Args:
        lines: with their ends; one without was cut off, and its last number with it.
    """
    reader = _Reader()
    for text in lines:
        if text.endswith("\n"):
            reader.line(text.rstrip("\r\n"))
    reader.finish()
    return BenchOutput(
        **reader.facts,
        rows=tuple(reader.rows),
        winner=reader.winner,
        malformed=tuple(reader.malformed),
    )


def _are_values(row: _Pending, text: str) -> bool:
    """Other lines may come in between: warnings of the driver, say."""
    cells = text.strip().split(",")
    return text[:1].isspace() and len(cells) > len(row.names) // 2


def _row(pending: _Pending) -> BenchRow:
    names, values = pending.names, pending.values
    if len(names) != len(values):
        raise ValueError(f"{len(names)} columns, {len(values)} values")
    columns = dict(zip(names, values, strict=True))
    if len(columns) != len(names):
        raise ValueError("a column stands twice")
    us = float(columns.get("us", "nan"))
    if not (math.isfinite(us) and us > 0):
        raise ValueError(f"us = {columns.get('us')!r} is no time")
    told = [pending.notes.get("Solution index"), *map(columns.get, INDEX_COLUMNS)]
    indices = {index for text in told if text is not None and (index := int(text)) >= 0}
    if len(indices) > 1:
        raise ValueError(f"names several solutions: {sorted(indices)}")
    return BenchRow(
        pending.place,
        columns,
        us,
        indices.pop() if indices else None,
        pending.notes.get("Solution name", ""),
        pending.notes.get("kernel name", ""),
    )
