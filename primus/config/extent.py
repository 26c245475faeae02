"""How far an artefact went, and whether Snakemake will see that it shall go elsewhere now."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.config.identity import StageKey
from primus.config.paths import artifact, settings_file
from primus.errors import UserError
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


def extent_lines(made: StageKey) -> list[str]:
    """The extent as `key=value`, so that a dry run prints which value changed."""
    return [f"{name}={json.dumps(value)}" for name, value in sorted(made.extent.items())]


class Extents:
    """How far the targets of one call want each artefact to go."""

    def __init__(self) -> None:
        self._wanted: dict[str, tuple[StageKey, str]] = {}

    def want(self, made: StageKey, who: str) -> None:
        """Note what a target wants.

        Args:
            who: the target, in words.

        Raises:
            UserError: another target wants the same artefact to go elsewhere.
        """
        path = artifact(made)
        before, other = self._wanted.setdefault(path, (made, who))
        if before.digest != made.digest:
            far = [", ".join(extent_lines(one)) for one in (before, made)]
            raise UserError(
                f"{path}: {other} and {who} are one run; the one wants {far[0]} of it, the other "
                f"{far[1]}. Fix: ask for one at a time, or write the same value for both"
            )
