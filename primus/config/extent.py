"""How far an artefact went, and whether Snakemake will see that it shall go elsewhere now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.config.identity import StageKey
from primus.config.paths import artifact
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


def elsewhere(made: StageKey, root: Path) -> Mapping[str, Any] | None:
    """The extent of the artefact that is there, where another one is wanted now; otherwise None.

    Snakemake compares the extent with its own record of the job. There is none of a job that ended
    while no Snakemake waited, nor after `.snakemake` was deleted; `--touch` writes one that is not
    true, and `--rerun-triggers mtime` asks none. So the artefact's own word counts.
    """
    found = recorded(made.extent, root / artifact(made))
    return None if found == made.extent else found


def is_other_comparison(wanted: Any, path: Path) -> bool:
    """Whether what `ab_<experiment>` has found was found in other rounds than are wanted.

    Args:
        wanted: the settings under `ab`. path: of ab.json, which does not say what time was given.
    """
    try:
        found = read_json(path)
        names = ("rounds", "warm_up_steps", "steps_per_segment")
        return any(found[name] != getattr(wanted, name) for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def lines(extent: Mapping[str, Any]) -> list[str]:
    """An extent as `key=value`."""
    return [f"{name}={json.dumps(value)}" for name, value in sorted(extent.items())]


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
            far = [", ".join(lines(one.extent)) for one in (before, made)]
            raise UserError(
                f"{path}: {other} and {who} are one run; the one wants {far[0]} of it, the other "
                f"{far[1]}. Fix: ask for one at a time, or write the same value for both"
            )
