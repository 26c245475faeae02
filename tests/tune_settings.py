"""What the tune stage may read of an experiment that is made up for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primus.config.frozen import StageSettings


def tune_settings(
    store: Path,
    *,
    platform: str = "cpu",
    gemm_backend: str = "replay",
    changes: dict[str, Any] | None = None,
    **tuning: Any,
) -> StageSettings:
    """Frozen settings with the store at `store`.

    Args:
        changes: of other keys than `gemm_tuning`. tuning: of those in it.
    """
    keys = {
        "enabled": True,
        "budget_minutes": 5.0,
        "coverage": 1.0,
        "min_gain": None,
        "problem_timeout_seconds": 60.0,
        "allow_lossy": False,
        "workers": None,
        "store": str(store),
        "replay_file": None,
        "workspace_mib": 32,
        "expert_token_factors": [0.5, 1.0, 2.0],
        "step_rounds": 0,
        "nodes": 1,
    }
    settings = {
        "platform": platform,
        "threads_per_rank": 1,
        "gemm_backend": gemm_backend,
        "env": {},
        "gemm_tuning": keys | tuning,
    }
    return StageSettings.of("tune", settings | (changes or {}))
