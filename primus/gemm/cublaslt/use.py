"""What the preloaded library did with the tuned result in this process."""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from primus.artifacts.gemm import TunedRow
from primus.artifacts.run import TunedUse
from primus.gemm.backends.base import DEFAULT
from primus.gemm.cublaslt.problem_text import parse_problem, render_problem
from primus.gemm.problem import Problem
from primus.gemm.tuned import TunedResult

_NOT_PRELOADED = "libprimus_cublaslt.so is not preloaded in this process"
_USES = {"hit": "hit", "default": "default", "miss": "miss", "rejected": "rejection"}


def used(result: TunedResult) -> TunedUse:
    """The counters of this process, per problem of the result."""
    return use_of(result.rows, counters())


def counters() -> Mapping[str, Any] | None:
    """What `primus_cublaslt_use` says (`native/use.cpp`); None where it is not preloaded."""
    try:
        ask = ctypes.CDLL(None).primus_cublaslt_use
    except AttributeError:
        return None
    while True:
        size = ask(None, 0)
        if size < 0:
            raise MemoryError("primus_cublaslt_use")
        # Calls on other threads may lengthen it in between.
        buffer = ctypes.create_string_buffer(size + 4096)
        if ask(buffer, size + 4096) < size + 4096:
            found: dict[str, Any] = json.loads(buffer.value)
            return found


def use_of(rows: Sequence[TunedRow], report: Mapping[str, Any] | None) -> TunedUse:
    """Lay a report of counters over the rows of a result; every row is in the answer."""
    told = _Told(report or {"problems": []})
    groups: dict[str, list[TunedRow]] = {}
    problems: list[dict[str, Any]] = []
    idle = _why_idle(report)
    for row in rows:
        try:
            text = render_problem(Problem.from_json(row.problem))
        except ValueError as error:
            problems.append(_line(row.text, 0, "unused", DEFAULT, str(error)))
            continue
        groups.setdefault(text, []).append(row)
    for text, group in groups.items():
        problems += _of_group(group, told, text, idle)
    for text, calls in told.misses.items():
        problems.append(
            _line(str(parse_problem(text)), calls, "miss", DEFAULT, "not in the tuned result")
        )
    report = report or {}
    return TunedUse(
        hits=report.get("hits", 0),
        defaults=report.get("defaults", 0),
        misses=sum(report.get(name, 0) for name in ("misses", "passed", "inexpressible")),
        rejections=report.get("rejections", 0),
        problems=problems,
    )


class _Told:
    """A report by the text of the tuned problem that served a call."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.calls: dict[str, Counter[tuple[str, str, str]]] = {}
        self.nearest: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        for row in report["problems"]:
            if row["kind"] == "miss":
                self.misses[row["problem"]] += row["calls"]
                continue
            text = row.get("nearest", row["problem"])
            how = (_USES[row["kind"]], row.get("algorithm", DEFAULT), row.get("reason", ""))
            self.calls.setdefault(text, Counter())[how] += row["calls"]
            if "nearest" in row:
                self.nearest[text] += row["calls"]


def _why_idle(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return _NOT_PRELOADED
    return str(report["refused"])


def _of_group(group: Sequence[TunedRow], told: _Told, text: str, idle: str) -> list[dict[str, Any]]:
    """The lines of rows that the library cannot tell apart; they share its calls as they did
    when they were recorded."""
    lines: list[dict[str, Any]] = []
    found = told.calls.get(text)
    for row, share in zip(group, _shares([row.calls for row in group]), strict=True):
        if not found:
            lines.append(_line(row.text, 0, "unused", row.candidate, idle or "never called"))
            continue
        for (use, algorithm, reason), total in sorted(found.items()):
            why = reason
            if use == "hit" and algorithm != row.candidate:
                why = (
                    f"{row.candidate} won here; problems that differ in alpha or beta share a line"
                )
            line = _line(row.text, share(total), use, algorithm, why)
            if told.nearest[text]:
                line["nearest"] = min(share(told.nearest[text]), line["calls"])
            lines.append(line)
    return lines


def _shares(weights: Sequence[int]) -> list[Any]:
    """Functions that give each its part of a number of calls; the parts add up."""
    whole, before = sum(weights) or 1, 0
    shares = []
    for weight in weights:
        shares.append(
            lambda total, low=before, high=before + weight: (
                total * high // whole - total * low // whole
            )
        )
        before += weight
    return shares


def _line(problem: str, calls: int, use: str, candidate: str, why: str) -> dict[str, Any]:
    line = {"problem": problem, "calls": calls, "use": use, "candidate": candidate}
    return line | ({"why": why} if why else {})
