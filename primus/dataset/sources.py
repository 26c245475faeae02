"""Where the documents of a data set come from, in parts that are tokenised one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from primus.artifacts.manifest import FileRecord
from primus.dataset.text import Kind, Record, TextFile
from primus.errors import DataError
from primus.files import sha256_file

ROWS_PER_PART = 100_000


class Part(Protocol):
    """Some documents that become one shard.

    Attributes:
        name: how the manifest calls it.
        size, position: bytes in all and read so far; 0 where unknown.
        file: size and hash as far as they are known before reading.
    """

    name: str
    kind: Kind
    size: int
    position: int
    file: FileRecord | None

    def records(self) -> Iterator[Record]:
        """Every document's bytes, in order."""

    def content(self) -> FileRecord:
        """Size and hash of what was read; to be called after reading."""


class FilePart(TextFile):
    """A text file, hashed before it is read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._stamp = self._read_stamp()
        self.size = self._stamp[0]
        self.file: FileRecord | None = FileRecord(size=self.size, sha256=sha256_file(name))

    def content(self) -> FileRecord:
        """The record of the file.

        Raises:
            DataError: the file was changed while it was being read.
        """
        if self.file is None or self._read_stamp() != self._stamp:
            raise DataError(f"{self.name}: changed while it was read. Fix: start the stage again")
        return self.file

    def _read_stamp(self) -> tuple[int, int]:
        status = os.stat(self.name)
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Arguments of `datasets.load_dataset`."""

    path: str
    name: str | None = None
    revision: str | None = None
    split: str = "train"


def file_parts(names: Sequence[str]) -> list[FilePart]:
    """Every file as a part.

    Raises:
        DataError: a file cannot be read.
    """
    parts = []
    for name in names:
        try:
            parts.append(FilePart(name))
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    return parts


def hub_parts(
    dataset: HubDataset, json_key: str, rows_of_last: Callable[[], int], rows: int = ROWS_PER_PART
) -> Iterator[Part]:
    """Parts of `rows` rows each, until the data set ends.

    Args:
        rows_of_last: how many rows the last part had, whether it was read now or earlier.
    """
    from primus.dataset.hub import HubPart, open_dataset

    stream, label = open_dataset(dataset.path, dataset.name, dataset.revision, dataset.split)
    start = 0
    while True:
        yield HubPart(stream, label, start, rows, json_key)
        if rows_of_last() < rows:
            return
        start += rows
