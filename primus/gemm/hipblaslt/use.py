"""What hipBLASLt did with the tuned result, from a dump taken under the override file."""

from __future__ import annotations

from collections import Counter
from typing import Any

from primus.artifacts.run import TunedUse
from primus.gemm.backends.base import DEFAULT
from primus.gemm.formats.stream import Dump
from primus.gemm.hipblaslt.collisions import Served, lookup_key, serve
from primus.gemm.problem import Problem
from primus.gemm.tuned import TunedResult


def used(result: TunedResult, dump: Dump[tuple[Problem, str]]) -> TunedUse:
    """Hold the solutions that ran against those that the override file names.

    Args:
        dump: what `primus.gemm.hipblaslt.dump.read` found of a run under the override file.
    """
    runs: dict[Problem, Counter[str]] = {}
    for (problem, name), calls in dump.calls.items():
        runs.setdefault(problem, Counter())[name] += calls
    served = {lookup_key(Problem.from_json(s.rows[0].problem)): s for s in serve(result.rows)}
    totals = Counter[str]()
    problems: list[dict[str, Any]] = []
    never = "never called" if runs else "hipBLASLt logged no call at all: nothing is known"
    for problem in sorted(runs.keys() | result.candidates.keys(), key=Problem.sort_key):
        known = result.candidates.get(problem)
        if problem not in runs:
            problems.append(_report(problem, "unused", known or DEFAULT, 0, never))
            continue
        by_key = served.get(lookup_key(problem))
        for kind, name, calls, why in _judge(problem, known, by_key, runs[problem]):
            totals[kind] += calls
            problems.append(_report(problem, kind, name, calls, why))
    return TunedUse(
        hits=totals["hit"],
        defaults=totals["default"],
        misses=totals["miss"],
        rejections=totals["rejection"],
        problems=problems,
    )


def _judge(
    problem: Problem, known: str | None, served: Served | None, runs: Counter[str]
) -> list[tuple[str, str, int, str]]:
    """Kind, candidate, calls and reason of each part of a problem's calls."""
    total = runs.total()
    wanted = served.candidate if served is not None else DEFAULT
    shared = ""
    if served is not None and (served.collides or known is None):
        shared = "hipBLASLt cannot tell it from " + " | ".join(
            row.text for row in served.rows if row.text != str(problem)
        )
    if known is None and (wanted == DEFAULT or not runs[wanted]):
        return [("miss", DEFAULT, total, "not in the tuned result")]
    if wanted == DEFAULT:
        return [("default", DEFAULT, total, shared)]
    parts = [("hit", wanted, runs[wanted], shared)] if runs[wanted] else []
    others = Counter({name: calls for name, calls in runs.items() if name != wanted})
    if others:
        ran = ", ".join(name or "a solution that the log does not name" for name in sorted(others))
        parts.append(("rejection", wanted, others.total(), f"hipBLASLt ran {ran} instead"))
    return parts


def _report(problem: Problem, kind: str, candidate: str, calls: int, why: str) -> dict[str, Any]:
    entry = {"problem": str(problem), "calls": calls, "use": kind, "candidate": candidate}
    return entry | ({"why": why} if why else {})
