"""Which checkpoints of a run are kept, and how the others are deleted. No torch here."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.run import RunIdentity, StartedFrom
from primus.errors import ArtifactError
from primus.trainer import started_from
from primus.trainer.checkpoint_directory import (
    iteration_of,
    load_manifest,
    newest_first,
    unused,
    verify,
)

logger = logging.getLogger(__name__)

_DELETED = ".iter_*.deleted-*"


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept of a run's good checkpoints.

    Attributes:
        keep_last: so many of the newest; None: all.
        keep_every: besides them, those at a multiple of so many iterations; None: no others.
    """

    keep_last: int | None = None
    keep_every: int | None = None


def superfluous(
    root: Path, key: str, retention: Retention, known_good: Path | None = None
) -> list[Path]:
    """Checkpoints of the run `key` under `root` that need not be kept, oldest first.

    Damaged ones are left for a person to look at, and never count as kept. What an unfinished run
    beside this one names as its `load_checkpoint` is kept, and so is the last one that verifies.

    Args:
        known_good: one that has just been verified; without it all files of the newest are read.
    """
    if retention.keep_last is None:
        return []
    good = list(_with_manifest(root, key))
    candidates = [
        path
        for path in good[retention.keep_last :]
        if not (retention.keep_every and (iteration_of(path) or 0) % retention.keep_every == 0)
    ]
    if not candidates:
        return []
    needed = {*_needed_by_others(root), (known_good or _last_good(good, key) or root).resolve()}
    return [path for path in reversed(candidates) if path.resolve() not in needed]


def delete(checkpoints: Iterable[Path]) -> list[Path]:
    """Delete checkpoints; returns those that are gone, and names the others in the log.

    Each gets another name first, so that a deletion which is cut short leaves no half checkpoint;
    the next one removes what it left.
    """
    gone = []
    for checkpoint in checkpoints:
        doomed = unused(checkpoint.with_name(f".{checkpoint.name}.deleted"))
        try:
            os.rename(checkpoint, doomed)
            gone.append(checkpoint)
            for leftover in checkpoint.parent.glob(_DELETED):
                shutil.rmtree(leftover)
        except OSError as error:
            logger.warning("%s: cannot be deleted: %s", checkpoint, error)
    return gone


def _with_manifest(root: Path, key: str) -> Iterator[Path]:
    for directory in newest_first(root):
        try:
            load_manifest(directory, key)
        except ArtifactError:
            continue
        yield directory


def _last_good(newest_to_oldest: list[Path], key: str) -> Path | None:
    for directory in newest_to_oldest:
        try:
            verify(directory, key)
        except ArtifactError as error:
            logger.warning("a damaged checkpoint does not count as kept: %s", error)
            continue
        return directory
    return None


def _needed_by_others(root: Path) -> Iterator[Path]:
    """What unfinished runs under the same directory of runs start from.

    `root` is `<runs>/<experiment>/<key>/checkpoints`. A run or a directory of checkpoints stands
    for the newest checkpoint in it, and for the one that was the newest when it was started from.
    """
    run = root.resolve().parent
    for path in run.parent.parent.glob("*/*/run.json"):
        if path.parent == run or (path.parent / "train.json").exists():
            continue
        try:
            named = RunIdentity.load(path).settings.get("load_checkpoint")
        except ArtifactError as error:
            logger.warning("what this run starts from is not known: %s", error)
            continue
        if isinstance(named, str):
            source = Path(named).resolve()
            yield source
            yield from newest_first(source)[:1] + newest_first(source / "checkpoints")[:1]
            yield from _noted(path.parent / started_from.FILE)


def _noted(path: Path) -> Iterator[Path]:
    if path.exists():
        try:
            yield Path(StartedFrom.load(path).checkpoint).resolve()
        except ArtifactError as error:
            logger.warning("what this run starts from is not known: %s", error)
