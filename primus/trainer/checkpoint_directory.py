"""Checkpoint directories of a run: names, manifests, verification, publication. No torch here.

A checkpoint is written under a temporary name, its manifest last, then renamed. A directory
without a manifest, or whose files do not match it, is not a checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from primus.artifacts.manifest import AnyRecord
from primus.artifacts.run import CheckpointManifest, CheckpointSummary
from primus.errors import ArtifactError, CheckpointError
from primus.files import fsync_directory, sha256_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"iter_([0-9]{7,18})")
# More read files that are in memory no faster.
_READERS = 4
_FILE_OF_RANK = re.compile(r"__([0-9]{1,9})_")

Files = dict[str, AnyRecord]


def name_of(iteration: int) -> str:
    """Directory name of the checkpoint after `iteration` iterations, as Megatron-LM names it."""
    return f"iter_{iteration:07d}"


def iteration_of(directory: Path) -> int | None:
    """The iteration in a checkpoint directory's name, or None for another name."""
    match = _NAME.fullmatch(directory.name)
    return int(match.group(1)) if match else None


def newest_first(root: Path) -> list[Path]:
    """Published checkpoint directories under `root`, newest first; not verified."""
    found = [
        (iteration, path)
        for path in (root.iterdir() if root.is_dir() else ())
        if path.is_dir() and (iteration := iteration_of(path)) is not None
    ]
    return [path for _, path in sorted(found, reverse=True)]


def rank_of(name: str) -> int:
    """Which rank has written a file of a checkpoint, by its name; 0 for a file of all ranks."""
    match = _FILE_OF_RANK.match(name)
    return int(match.group(1)) if match else 0


def share(manifest: CheckpointManifest, rank: int, world: int) -> tuple[Files, Files]:
    """What a rank has to verify: files of tensors, of the ranks that saved, and all others.

    Of tensors what it will load, where it is the one that has saved it: its node then has it.
    """
    own = {n: r for n, r in manifest.files.items() if rank_of(n) % world == rank}
    tensors = {name: record for name, record in own.items() if _FILE_OF_RANK.match(name)}
    return tensors, {name: record for name, record in own.items() if name not in tensors}


def readers() -> int:
    """How many files or tensors a rank reads at a time; ranks of a node share its cores."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_READERS, len(os.sched_getaffinity(0)) // ranks))


def payload(directory: Path) -> list[Path]:
    """Every file of a checkpoint but its manifest, sorted."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if path != directory / MANIFEST)


def fsync_files(paths: Iterable[Path]) -> None:
    """Force the content of `paths` to disk.

    Raises:
        OSError: the device reports that data could not be written.
    """
    for path in paths:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def load_manifest(directory: Path, key: str | None) -> CheckpointManifest:
    """Read a checkpoint's manifest and check that it belongs to the run `key`, if one is given.

    A file that no hash vouches for must not be there: some are pickles, and loading would run them.

    Raises:
        ArtifactError: no manifest, a damaged one, one of another run, or one that lacks a file.
    """
    manifest = CheckpointManifest.load(directory / MANIFEST)
    if key is not None and manifest.key != key:
        raise ArtifactError(f"{directory}: belongs to run {manifest.key}, not to run {key}")
    if manifest.iteration != iteration_of(directory):
        raise ArtifactError(f"{directory}: holds iteration {manifest.iteration}")
    stray = {str(p.relative_to(directory)) for p in payload(directory)} - manifest.files.keys()
    if stray:
        raise ArtifactError(f"{directory}: not in its manifest: {', '.join(sorted(stray))}")
    return manifest


def verify_files(directory: Path, files: Iterable[tuple[str, AnyRecord]]) -> None:
    """Compare files of a checkpoint with what its manifest says of them.

    Raises:
        ArtifactError: the first file that is missing, truncated or changed.
    """
    with ThreadPoolExecutor(readers()) as pool:
        for done in [pool.submit(record.verify, directory / name) for name, record in files]:
            done.result()


def first_wrong_size(directory: Path, manifest: CheckpointManifest) -> str | None:
    """The first file whose size is not what the manifest says; None where all are. Reads none."""
    for name, record in sorted(manifest.files.items()):
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != record.size:
            found = "missing" if size is None else f"has {size} bytes, not {record.size}"
            return f"{path}: {found}"
    return None


def verify(directory: Path, key: str) -> CheckpointManifest:
    """Check a whole checkpoint: manifest, every file's hash, no file too many.

    Raises:
        ArtifactError: what is wrong first.
    """
    manifest = load_manifest(directory, key)
    verify_files(directory, sorted(manifest.files.items()))
    return manifest


def summarise(root: Path, key: str) -> Iterator[CheckpointSummary]:
    """Every checkpoint under `root` that verifies, oldest first; others are named in the log."""
    for directory in reversed(newest_first(root)):
        try:
            manifest = verify(directory, key)
        except ArtifactError as error:
            logger.warning("skipping a damaged checkpoint: %s", error)
            continue
        yield CheckpointSummary(
            name=directory.name,
            iteration=manifest.iteration,
            manifest_sha256=sha256_file(directory / MANIFEST),
            bytes=sum(record.size for record in manifest.files.values()),
        )


def temporary(root: Path, iteration: int, attempt: int) -> Path:
    """Where an attempt writes the checkpoint of `iteration` before it is published.

    An attempt that has been replaced, but does not know it yet, never writes where its successor
    does.
    """
    return root / f".{name_of(iteration)}.{attempt:03d}.tmp"


def remove_unfinished(root: Path) -> None:
    """Remove what unfinished saves have left."""
    for leftover in root.glob(".iter_*.tmp") if root.is_dir() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def publish(root: Path, manifest: CheckpointManifest) -> Path:
    """Write the manifest of the temporary directory and rename it into place.

    An older directory of the same name is damaged (a good one is never saved again) and is set
    aside under another name, not deleted.

    Raises:
        CheckpointError: the manifest or the rename failed.
    """
    source = temporary(root, manifest.iteration, manifest.attempt)
    target = root / name_of(manifest.iteration)
    try:
        manifest.save(source / MANIFEST)
        if target.exists():
            os.rename(target, unused(root / f"damaged-{target.name}"))
        os.rename(source, target)
        fsync_directory(root)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot publish the checkpoint: {error}") from error
    return target


def unused(path: Path) -> Path:
    """`path` with the first number after it that is not taken."""
    number = 0
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")
