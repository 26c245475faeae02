"""How far an artefact went, and whether Snakemake will see that it shall go elsewhere now."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.config.identity import StageKey
from primus.config.paths import artifact, settings_file
from primus.files import read_json


def recorded(names: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """The extent of the artefact at `path`, by its own word; None where it does not say.

    Args:
        names: the keys of the extent.
    """
    try:
        settings = read_json(path)["settings"]
        return {name: settings[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def renew(made: StageKey, root: Path) -> None:
    """Let frozen settings count as new where the artefact beside them went to another extent.

    Snakemake compares the extent with its own record of the job. Of a job that ended while no
    Snakemake waited there is none, and settings that were frozen before that job are no newer than
    what it made: the change would not be seen.
    """
    if not made.extent:
        return
    path, settings = root / artifact(made), root / settings_file(made)
    if recorded(made.extent, path) in (None, made.extent) or not settings.is_file():
        return
    if settings.stat().st_mtime_ns <= path.stat().st_mtime_ns:
        os.utime(settings)
