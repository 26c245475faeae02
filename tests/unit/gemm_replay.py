"""Recordings for the replay backend, made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from primus.gemm.backends.base import BackendSpec
from primus.gemm.problem import Problem
from primus.gemm.shapes import Shape


def shape(number: int, calls: int = 1) -> Shape:
    """A shape of its own for each number; larger numbers are larger problems."""
    problem = Problem(m=64, n=64, k=64 + number)
    return Shape(problem, calls, {"forward": calls})


def recording(
    path: Path,
    candidates: Sequence[Mapping[str, Mapping[str, Any]]],
    *,
    noise: Mapping[str, float] | None = None,
    seed: int = 0,
    details: Mapping[int, Mapping[str, Any]] | None = None,
    **more: Any,
) -> BackendSpec:
    """Write a recording of shape(0), shape(1), … and return the backend that plays it."""
    problems = [
        {"problem": shape(number).problem.to_json(), "candidates": times}
        for number, times in enumerate(candidates)
    ]
    for number, kept in (details or {}).items():
        problems[number]["details"] = kept
    content = {
        "kind": "gemm-replay",
        "seed": seed,
        "peak_tflops": {"f32_r": 0.1},
        "noise": dict(noise or {}),
        "problems": problems,
        **more,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return BackendSpec(name="replay", threads=0, replay_file=str(path))
