"""Token files of one input each, so that a stopped stage goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from primus.artifacts.manifest import FileRecord, Manifest
from primus.dataset.bad_lines import BadLines
from primus.dataset.progress import Progress
from primus.dataset.sources import Part
from primus.dataset.tokenize import Batch, TokenizerPool
from primus.errors import ArtifactError


class Shard(Manifest):
    """A finished shard.

    Attributes:
        source: name of the part that it was made from, and `file` its content.
        recipe: how it was made (tokenizer and options).
        empty: documents without text, left out.
        bad_lines: "file:line: why" of each line that was skipped.
        files: .bin and .idx by name.
    """

    kind: ClassVar[str] = "shard"

    source: str
    file: FileRecord
    recipe: str
    documents: int
    tokens: int
    characters: int
    empty: int
    bad_lines: list[str]
    files: dict[str, FileRecord]

    @property
    def rows(self) -> int:
        """Records that were read, good, empty or bad."""
        return self.documents + self.empty + len(self.bad_lines)


class Shards:
    """The shards of a data set: `<directory>/00000.bin`, `.idx` and `.json`, the last one last.

    Args:
        directory: where they lie.
        recipe: text that says how they are made; a shard of another recipe is made again.
        vocab_size: ids are below this; it decides the type of a token on disk.
        pool: starts the worker processes when first called.
    """

    def __init__(
        self,
        directory: Path,
        *,
        recipe: str,
        vocab_size: int,
        bad: BadLines,
        progress: Progress,
        pool: Callable[[], TokenizerPool],
    ) -> None:
        self.directory = directory
        self._recipe, self._vocab_size, self._pool = recipe, vocab_size, pool
        self._bad, self._progress = bad, progress
        self.finished: list[Shard] = []
        self._read = self._tokens = 0
        directory.mkdir(parents=True, exist_ok=True)

    @cached_property
    def dtype(self) -> Any:
        """The numpy type of a token on disk."""
        from primus.dataset.core import DType

        return DType.optimal_dtype(self._vocab_size)

    def prefix(self, index: int) -> Path:
        """Path of shard `index` without suffix."""
        return self.directory / f"{index:05d}"

    def add(self, part: Part) -> None:
        """Make the next shard from `part`, or keep the one that an earlier start made of it.

        Raises:
            DataError: too many bad lines, or the part cannot be read.
        """
        shard = self._kept(part)
        if shard is not None:
            self._bad.count(shard.bad_lines)
            self._progress.line(f"{part.name}: kept {shard.tokens:,} tokens")
        else:
            shard = self._make(part)
        self.finished.append(shard)
        self._tokens += shard.tokens
        self._read += part.size
        self._progress.update(self._read, self._tokens)

    def _kept(self, part: Part) -> Shard | None:
        prefix = self.prefix(len(self.finished))
        try:
            shard = Shard.load(prefix.with_suffix(".json"))
            for name, record in shard.files.items():
                record.verify(self.directory / name)
        except ArtifactError:
            return None  # unfinished or torn: it is made again
        same_source = shard.source == part.name and part.file in (None, shard.file)
        return shard if same_source and shard.recipe == self._recipe else None

    def _make(self, part: Part) -> Shard:
        # The workers start while core, which takes seconds, is imported.
        batches = self._pool().batches(part)
        from primus.dataset.core import IndexedDatasetBuilder

        prefix = self.prefix(len(self.finished))
        prefix.with_suffix(".json").unlink(missing_ok=True)
        first_bad = len(self._bad.lines)
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=self.dtype)
        with closing(builder.data_file):
            counts = self._write(part, batches, builder)
            builder.finalize(f"{prefix}.idx")
        files = [prefix.with_suffix(".bin"), prefix.with_suffix(".idx")]
        shard = Shard(
            source=part.name,
            file=part.content(),
            recipe=self._recipe,
            **counts,
            bad_lines=self._bad.lines[first_bad:],
            files={path.name: FileRecord.of(path) for path in files},
        )
        shard.save(prefix.with_suffix(".json"))
        return shard

    def _write(self, part: Part, batches: Iterable[Batch], builder: Any) -> dict[str, int]:
        counts = dict.fromkeys(("documents", "tokens", "characters", "empty"), 0)
        for batch in batches:
            for line, why in batch.bad:
                self._bad.add(part.name, part.kind, line, why)
            start = 0
            for length in batch.lengths:
                builder.add_document(batch.tokens[start : start + length], [length])
                start += length
            counts["documents"] += len(batch.lengths)
            counts["tokens"] += start
            counts["characters"] += batch.characters
            counts["empty"] += batch.empty
            self._progress.update(self._read + batch.read, self._tokens + counts["tokens"])
        return counts
