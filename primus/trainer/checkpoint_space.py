"""Is there room for a checkpoint? No torch here."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from primus.errors import ArtifactError, CheckpointError
from primus.trainer.checkpoint_directory import load_manifest, newest_first

logger = logging.getLogger(__name__)

# What the formats add: headers of tensors, the index, the manifest. Measured: 1.4 kB per tensor.
BYTES_PER_TENSOR = 4 << 10
BYTES_BESIDES = 1 << 20

_FIX = "set keep_last, delete what is not needed, or move the run to another disk"


def free_bytes(path: Path) -> int:
    """What this user may still write to the file system of `path`, or of its nearest parent."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def require(root: Path, needed: int) -> None:
    """Refuse a checkpoint that would not fit, before anything of it is written.

    Raises:
        CheckpointError: too little is free under `root`.
    """
    free = free_bytes(root)
    if free < needed:
        raise CheckpointError(
            f"{root}: a checkpoint needs {_amount(needed)}, and {_amount(free)} are free. "
            f"Nothing was written, and earlier checkpoints are as they were. Fix: {_FIX}"
        )


def warn_when_scarce(root: Path, estimate: int) -> None:
    """At the start of training: warn when not even two checkpoints fit.

    Args:
        estimate: bytes of a checkpoint, for a run that has none yet.
    """
    needed, free = newest_bytes(root) or estimate, free_bytes(root)
    if free < 2 * needed:
        logger.warning(
            "%s: %s are free, and a checkpoint takes about %s: not even two fit. Fix: %s",
            root,
            _amount(free),
            _amount(needed),
            _FIX,
        )


def newest_bytes(root: Path) -> int | None:
    """Size of the newest checkpoint under `root` by its manifest; None without one."""
    for directory in newest_first(root):
        try:
            manifest = load_manifest(directory, None)
        except ArtifactError:
            continue
        return sum(record.size for record in manifest.files.values())
    return None


def _amount(size: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.4g} TiB"
