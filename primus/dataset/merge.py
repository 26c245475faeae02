"""Joining shards into one pair of token files, verified before it gets its name."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from primus.artifacts.manifest import FileRecord
from primus.dataset.shards import Shard, Shards
from primus.errors import ArtifactError
from primus.files import fsync_directory

_CHUNK_TOKENS = 1 << 22


def merge(shards: Shards, prefix: Path) -> dict[str, FileRecord]:
    """Join finished shards, in order, into `<prefix>.bin` and `.idx`.

    Both get their names only after the content was held against the shards.

    Returns:
        Both files by name.

    Raises:
        ArtifactError: what was written is not what the shards hold.
    """
    from primus.dataset.core import IndexedDatasetBuilder

    draft = prefix.with_name(f".{prefix.name}.merging")
    builder = IndexedDatasetBuilder(f"{draft}.bin", dtype=shards.dtype)
    # Core collects garbage after each shard, 0.2 s over all the modules that it has imported.
    gc.freeze()
    try:
        for index in range(len(shards.finished)):
            builder.add_index(str(shards.prefix(index)))
    finally:
        gc.unfreeze()
    builder.finalize(f"{draft}.idx")
    records = {}
    for suffix in (".bin", ".idx"):
        _fsync(Path(f"{draft}{suffix}"))
        records[f"{prefix.name}{suffix}"] = FileRecord.of(Path(f"{draft}{suffix}"))
    _verify(draft, records[f"{prefix.name}.bin"], shards)
    for suffix in (".bin", ".idx"):
        os.replace(f"{draft}{suffix}", f"{prefix}{suffix}")
    fsync_directory(prefix.parent)
    return records


def _verify(draft: Path, written: FileRecord, shards: Shards) -> None:
    from primus.dataset.core import IndexedDataset

    digest = hashlib.sha256()
    for index in range(len(shards.finished)):
        with open(f"{shards.prefix(index)}.bin", "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    if digest.hexdigest() != written.sha256:
        raise ArtifactError(f"{draft}.bin: differs from the shards that it was joined from")
    dataset = IndexedDataset(str(draft))
    expected = _total(shards.finished)
    found = (len(dataset), int(dataset.sequence_lengths.sum(dtype=np.int64)))
    if found != expected:
        raise ArtifactError(
            f"{draft}.idx: has {found} documents and tokens, the shards have {expected}"
        )


def _total(finished: list[Shard]) -> tuple[int, int]:
    return sum(shard.documents for shard in finished), sum(shard.tokens for shard in finished)


def _fsync(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def unigram_entropy(bin_path: Path, dtype: Any, vocab_size: int) -> float:
    """Entropy of the token frequencies, in nats per token; the file is never held in memory."""
    tokens = np.memmap(bin_path, dtype=dtype, mode="r")
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        counts += np.bincount(tokens[start : start + _CHUNK_TOKENS], minlength=vocab_size)
    shares = counts[counts > 0] / len(tokens)
    return float(-(shares * np.log(shares)).sum())
