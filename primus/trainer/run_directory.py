"""The directory of a run: whose it is, its kernels, and its attempts. No torch here."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from primus.artifacts.run import RunIdentity
from primus.errors import RunConflictError
from primus.files import atomic_write, sha256_file
from primus.trainer.checkpoint_directory import newest_first

logger = logging.getLogger(__name__)

IDENTITY, TUNED = "run.json", "tuned.jsonl"


def claim(directory: Path, identity: RunIdentity) -> None:
    """Make the directory this run's, or check that it is already.

    Raises:
        RunConflictError: it belongs to a run with another identity; the difference is named.
    """
    path = directory / IDENTITY
    if not path.exists():
        identity.save(path)
        return
    found = RunIdentity.load(path)
    for name, value in identity.model_dump().items():
        other = getattr(found, name)
        if other != value:
            raise RunConflictError(
                f"{directory}: the run there has {name} = {_short(other)}, this one "
                f"{_short(value)}. Fix: restore what changed, or give this run another identity "
                "(data_version, seed or another experiment name)"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def adopt_tuned(directory: Path, tuned: Path | None) -> tuple[Path | None, str | None]:
    """The tuned result that this run uses for its whole life, and its SHA-256.

    The first start copies it into the run's directory: another choice of kernels in the middle
    of a run would change the rounding of its losses.
    """
    if tuned is None:
        return None, None
    own = directory / TUNED
    if not own.exists():
        with atomic_write(own, "wb") as target, open(tuned, "rb") as source:
            shutil.copyfileobj(source, target)
    digest = sha256_file(own)
    if tuned.exists() and sha256_file(tuned) != digest:
        logger.warning(
            "%s: this run keeps the tuned kernels that it started with; %s has others now",
            own,
            tuned,
        )
    return own, digest


def new_attempt(directory: Path) -> Path:
    """Make the directory of the next attempt; its name is the attempt's number."""
    root = directory / "attempts"
    root.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in root.iterdir() if path.name.isdigit()]
    path = root / f"{max(numbers, default=0) + 1:03d}"
    path.mkdir()
    return path


def newest_checkpoint(directory: Path) -> str | None:
    """Name of the newest published checkpoint; it is verified only when it is loaded."""
    return next((p.name for p in newest_first(directory / "checkpoints")), None)
