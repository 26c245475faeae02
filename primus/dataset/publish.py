"""Manifests that outlive the workflow, and one writer per artefact directory.

Snakemake deletes a declared output before it runs a job again. What a manifest vouches for is not
declared and stays; so a copy of the manifest stays too, hidden beside it, and the stage can tell
that its work is done already.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from primus.artifacts.manifest import FileRecord, Manifest
from primus.errors import ArtifactError, DataError, RunConflictError

M = TypeVar("M", bound=Manifest)


def kept_path(output: Path) -> Path:
    """Where the copy of the manifest `output` is kept."""
    return output.with_name(f".{output.name}")


def kept_manifest(kind: type[M], output: Path) -> M | None:
    """The manifest that an earlier start published as `output`, or None."""
    for path in (kept_path(output), output):
        if path.exists():
            return kind.load(path)
    return None


def publish(manifest: Manifest, output: Path) -> None:
    """Write the kept copy, then `output`; a file that says the same already is left untouched."""
    for path in (kept_path(output), output):
        if not path.exists() or type(manifest).load(path) != manifest:
            manifest.save(path)


def verify_files(files: dict[str, FileRecord], directory: Path) -> None:
    """Compare every file with its record.

    Raises:
        DataError: a file is missing or differs; names it, the difference and the fix.
    """
    for name, record in sorted(files.items()):
        try:
            record.verify(directory / name)
        except ArtifactError as error:
            raise DataError(
                f"{error}. Fix: restore the file, or move {directory} away and run the stage again"
            ) from error


def refuse_changed_inputs(
    known: dict[str, FileRecord], found: dict[str, FileRecord], output: Path
) -> None:
    """Compare the input files of a published artefact with those that are there now.

    Raises:
        DataError: an input was changed, added or removed; names the first one and both hashes.
    """
    for name in sorted(known.keys() | found.keys()):
        old, new = known.get(name), found.get(name)
        if old != new:
            raise DataError(
                f"{name}: SHA-256 is {new.sha256 if new else 'none (no such input)'}, "
                f"but {output} was made from {old.sha256 if old else 'data without it'}. "
                "Fix: set another data_version to use the new text, or restore the old one"
            )


@contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Hold the lock of the directory of `output`; the kernel frees it when the process ends.

    Raises:
        RunConflictError: another process holds it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output.with_name(".lock"), "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunConflictError(
                f"{output.parent}: another process is writing here. Fix: wait for it to end"
            ) from error
        yield
