"""Holding the files of a run against the hashes that its manifests promise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.manifest import AnyRecord
from primus.artifacts.run import CheckpointManifest, CheckpointSummary, TrainManifest
from primus.errors import ArtifactError
from primus.files import sha256_file
from primus.reports.inputs import Checkpoint

_SHA256 = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found for one checkpoint.

    Attributes:
        hashed: every file was hashed; else only the sizes were compared.
        problem: why it cannot be trusted; empty where it can.
    """

    summary: CheckpointSummary
    manifest: CheckpointManifest | None
    hashed: bool
    problem: str


def verify_checkpoints(
    train: TrainManifest, checkpoints: list[Checkpoint], hash_bytes: float
) -> list[Verified]:
    """Verify every listed checkpoint, oldest first in the result.

    Newest first, files are hashed until `hash_bytes` are spent; of the rest the sizes are compared.
    """
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    found = []
    for summary in sorted(train.checkpoints, key=lambda s: -s.iteration):
        hashed = summary.bytes <= hash_bytes
        hash_bytes -= summary.bytes if hashed else 0
        checkpoint = by_name[summary.name]
        problem = _checkpoint_problem(train, summary, checkpoint, hashed)
        found.append(
            Verified(summary=summary, manifest=checkpoint.manifest, hashed=hashed, problem=problem)
        )
    return found[::-1]


def _checkpoint_problem(
    train: TrainManifest, summary: CheckpointSummary, checkpoint: Checkpoint, hashed: bool
) -> str:
    path, manifest = checkpoint.directory / "manifest.json", checkpoint.manifest
    name = f"checkpoint {summary.name}"
    if manifest is None:
        return f"{name} has no readable manifest"
    digest = sha256_file(path)
    if digest != summary.manifest_sha256:
        return f"{name}: manifest.json has SHA-256 {digest[:12]}…, train.json says otherwise"
    if manifest.iteration != summary.iteration:
        return f"{name} is of iteration {manifest.iteration}, not {summary.iteration}"
    for what in ("key", "samples_fingerprint", "tokenizer_fingerprint"):
        if getattr(manifest, what) != getattr(train, what):
            return f"{name} has another {what} than train.json"
    problems = file_problems(checkpoint.directory, manifest.files, hashed)
    return f"{name}: {problems[0]}" if problems else ""


def file_problems(directory: Path, files: Mapping[str, AnyRecord], hashed: bool) -> list[str]:
    """Files that are missing or differ, in words; without `hashed` only sizes are compared."""
    problems = []
    for name, record in files.items():
        path = directory / name
        try:
            if hashed:
                record.verify(path)
            elif not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != record.size:
                problems.append(f"{name} has {path.stat().st_size} bytes, not {record.size}")
        except ArtifactError as error:
            problems.append(_SHA256.sub(r"\1…", str(error).replace(str(path), name)))
    return problems
