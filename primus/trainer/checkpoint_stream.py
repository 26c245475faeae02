"""Files that are hashed, and taken to the disk, while they are still being written.

One after the other, writing, hashing and syncing take the sum of their times; side by side they
take about the longest of them.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3
from torch.distributed.checkpoint.filesystem import FileSystem

from primus.artifacts.manifest import Blake3Record

# Of one call to the system: large for it, small for a processor's cache.
_PIECE = 4 << 20
# Smaller ones are hashed before another thread would have begun.
_WORTH_A_THREAD = 256 << 10
# A sync also waits for the file system's journal.
_SYNC_EVERY = 32 << 20


class SyncedFiles(FileSystem):
    """torch's file system; what is written through it has been synced when its stream closes.

    Attributes:
        records: of the files that were written, by name.
    """

    def __init__(self) -> None:
        self.records: dict[str, Blake3Record] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """A stream into a new file.

        Raises:
            OSError: it could not be written or synced.
        """
        if mode != "wb":
            raise ValueError(f"{path}: files are only written here, not opened as {mode!r}")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with ThreadPoolExecutor(2) as others, _Hashed(file, others) as raw:
                synced = others.submit(raw.sync)
                with _Buffered(raw, _WORTH_A_THREAD) as stream:
                    yield stream
                synced.result()
        finally:
            os.close(file)
        self.records[Path(path).name] = Blake3Record(
            size=raw.written, blake3=raw.digest.hexdigest()
        )


class _Buffered(io.BufferedWriter):
    """Writes when its buffer is full or it closes: torch flushes after each tensor."""

    def flush(self) -> None:
        """Nothing, until it closes."""

    def close(self) -> None:
        try:
            if not self.closed:
                super().flush()
        finally:
            super().close()


class _Hashed(io.RawIOBase):
    """A file that is hashed piece by piece while each is written."""

    def __init__(self, file: int, others: ThreadPoolExecutor) -> None:
        self._file, self._others = file, others
        self._grows = threading.Condition()
        self._whole = False
        self._synced = 0
        self.written = 0
        self.digest = blake3()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.written

    def write(self, content: Any) -> int:
        piece = memoryview(content)[:_PIECE]
        if len(piece) < _WORTH_A_THREAD:
            piece = piece[: os.write(self._file, piece)]
            self.digest.update(piece)
        else:
            # The memory is the caller's again when this returns.
            hashed = self._others.submit(self.digest.update, piece)
            try:
                written = 0
                while written < len(piece):
                    written += os.write(self._file, piece[written:])
            finally:
                hashed.result()
        with self._grows:
            self.written += len(piece)
            if self._is_worth_a_sync():
                self._grows.notify()
        return len(piece)

    def close(self) -> None:
        with self._grows:
            self._whole = True
            self._grows.notify()
        super().close()

    def sync(self) -> None:
        """Have the disk take it in from its beginning; returns when it has all of it."""
        whole = False
        while not whole:
            with self._grows:
                self._grows.wait_for(self._is_worth_a_sync)
                whole, self._synced = self._whole, self.written
            os.fsync(self._file)

    def _is_worth_a_sync(self) -> bool:
        return self._whole or self.written >= self._synced + _SYNC_EVERY
