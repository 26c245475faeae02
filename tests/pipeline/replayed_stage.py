"""A tune stage over a recording whose samples take their time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_settings import tune_settings

from primus.gemm.problem import Problem
from primus.gemm.shapes import write_shapes

PROBLEMS = 16


class ReplayedStage:
    """Settings, shapes and recording of a tune stage, and what it leaves in its store.

    Args:
        path: an empty directory.
        sample_seconds: how long each sample takes.
        problems: to tune; PROBLEMS of them if none are given.
        changes: keys of the settings.
        tuning: keys of gemm_tuning.
    """

    def __init__(
        self,
        path: Path,
        *,
        sample_seconds: float = 0.005,
        problems: Sequence[Problem] = (),
        changes: Mapping[str, Any] | None = None,
        **tuning: Any,
    ) -> None:
        self.path, self.store = path, path / "store"
        problems = problems or [Problem(m=64, n=64, k=64 + number) for number in range(PROBLEMS)]
        calls = {(problem, "forward"): 1 for problem in problems}
        write_shapes(path / "shapes.jsonl", calls, source="record", model={})
        candidates = {"default": {"us": [100.0]}, "fast": {"us": [80.0]}, "x": {"us": [101.0]}}
        recording = {
            "peak_tflops": {"f32_r": 0.1},
            "noise": {"sigma": 0.04},
            "sample_seconds": sample_seconds,
            "problems": [{"problem": p.to_json(), "candidates": candidates} for p in problems],
        }
        (path / "recording.json").write_text(json.dumps(recording))
        settings = tune_settings(
            self.store,
            changes=changes,
            **{
                "replay_file": str(path / "recording.json"),
                "expert_token_factors": [1.0],
                **tuning,
            },
        )
        settings.save(path / "settings.json")

    @property
    def output(self) -> Path:
        """What the stage writes."""
        return self.path / "tuned.jsonl"

    def command(self) -> list[str]:
        """The argument list of the stage."""
        return [
            *(sys.executable, "-m", "primus.tune", "--settings", str(self.path / "settings.json")),
            *("--shapes", str(self.path / "shapes.jsonl"), "--output", str(self.output)),
        ]

    def timed(self) -> dict[str, tuple[bytes, int]]:
        """Bytes and time of each problem's file in the store."""
        return {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.store.glob("*/*.json")
            if re.fullmatch(r"[0-9a-f]{20}\.json", path.name)
        }
