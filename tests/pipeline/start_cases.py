"""What start_ranks.py and the test that starts it have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primus.artifacts.provenance import libraries
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load

ABOUT: dict[str, Any] = {
    "key": "0" * 12,
    "parent": None,
    "attempt": 1,
    "samples_fingerprint": "s",
    "tokenizer_fingerprint": "t",
    "tuned_sha256": None,
    "code_commit": "c",
    "code_dirty": False,
    "libraries": libraries(),
    "layout": {},
}


def settings_of(experiment: str, **changes: Any) -> StageSettings:
    """The train stage's settings of a shipped experiment, changed."""
    root = Path(__file__).parents[2]
    resolved = load(experiment, {"hardware": "cpu"} | changes, root=root, stages=())
    made = identities(resolved.settings)["train"]
    return StageSettings.of_key(made, experiment)
