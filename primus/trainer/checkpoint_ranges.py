"""Files read once: what is wanted of them goes where it is for, all of it through their hash.

No torch here. To verify first and read then would take two readings.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from primus.artifacts.manifest import AnyRecord
from primus.errors import ArtifactError
from primus.trainer.checkpoint_directory import readers

# Of one call to the system: hashed while it is still in a processor's cache.
_PIECE = 2 << 20
# The system takes 1024 at most.
_PARTS = 512


class Range(ABC):
    """A range of a file that is wanted.

    Attributes:
        start, length: in bytes; of more than 0.
    """

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length

    @abstractmethod
    def memory(self) -> memoryview:
        """Where it goes: bytes, of its length; asked for once, when it is about to be read."""

    @abstractmethod
    def ready(self) -> None:
        """It has been read, and hashed where its file is; called by some thread."""


def read(
    directory: Path, wanted: Mapping[str, Sequence[Range]], vouched: Mapping[str, AnyRecord]
) -> list[str]:
    """Read what is wanted, and compare the files that are vouched for with their hashes.

    Args:
        directory: of all files. wanted: by name of the file.
        vouched: files that are read from end to end, wanted or not; of others what is wanted.

    Returns:
        what is wrong with a file: it is missing, too short, changed, or cannot be read. What has
        been read until then is in its memory; ranges of it may not have been `ready`.
    """
    workers = readers()
    with ThreadPoolExecutor(workers) as hashers, ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(_verify, directory / name, wanted.get(name, ()), record, hashers)
            for name, record in sorted(vouched.items())
        ]
        for name in sorted(wanted.keys() - vouched.keys()):
            ordered = sorted(wanted[name], key=lambda wanted: wanted.start)
            shares = (ordered[part::workers] for part in range(workers))
            jobs += [pool.submit(_fill, directory / name, share) for share in shares if share]
    problems = set()
    for job in jobs:
        try:
            job.result()
        except ArtifactError as error:
            problems.add(str(error))
    return sorted(problems)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)


def _fill(path: Path, ranges: Iterable[Range]) -> None:
    """Read the ranges, and nothing else."""
    with _opened(path) as file:
        for wanted in ranges:
            _read(file, path, [wanted.memory()], wanted.start)
            wanted.ready()


def _verify(
    path: Path, ranges: Iterable[Range], record: AnyRecord, hashers: ThreadPoolExecutor
) -> None:
    """Read the whole file in order; a piece is hashed while the next one is read."""
    ordered, others = _disjoint(ranges, record.size)
    digest, hashed = record.hasher(), Future[None]()
    hashed.set_result(None)
    with _opened(path) as file:
        try:
            for piece in _pieces(ordered, record.size):
                _read(file, path, piece.parts, piece.start)
                hashed.result()
                hashed = hashers.submit(piece.pass_on, digest)
        finally:
            wait([hashed])
        hashed.result()
    record.verify_size(path)
    record.verify_digest(path, digest.hexdigest())
    _fill(path, others)


def _disjoint(ranges: Iterable[Range], size: int) -> tuple[list[Range], list[Range]]:
    """Ranges that follow each other in a file of `size` bytes, and all others."""
    ordered, others, end = [], [], 0
    for wanted in sorted(ranges, key=lambda wanted: wanted.start):
        if end <= wanted.start and wanted.start + wanted.length <= size:
            ordered.append(wanted)
            end = wanted.start + wanted.length
        else:
            others.append(wanted)
    return ordered, others


@dataclass
class _Piece:
    """What one call reads.

    Attributes:
        scratch: for what is not wanted. start: in the file.
        parts: memory that it goes to. ended: ranges of which it is the last piece.
    """

    scratch: memoryview
    start: int
    length: int = 0
    parts: list[memoryview] = field(default_factory=list)
    ended: list[Range] = field(default_factory=list)

    def add(self, memory: memoryview | None, length: int) -> int:
        """Take as much of so many bytes as there is room for; how much it was."""
        length = min(length, _PIECE - self.length)
        place = self.scratch[self.length :] if memory is None else memory
        self.parts.append(place[:length])
        self.length += length
        return length

    def is_full(self) -> bool:
        return self.length == _PIECE or len(self.parts) == _PARTS

    def pass_on(self, digest: Any) -> None:
        """Hash it, then tell whose it is."""
        for part in self.parts:
            digest.update(part)
        for wanted in self.ended:
            wanted.ready()


def _pieces(ranges: Sequence[Range], size: int) -> Iterator[_Piece]:
    """A whole file in pieces. One is read while the one before is hashed: two scratches do."""
    scratches = cycle([memoryview(bytearray(_PIECE)) for _ in range(2)])
    piece = _Piece(next(scratches), 0)
    for wanted, length in _segments(ranges, size):
        memory = None if wanted is None else wanted.memory()
        at = 0
        while at < length:
            at += piece.add(None if memory is None else memory[at:], length - at)
            if wanted is not None and at == length:
                piece.ended.append(wanted)
            if piece.is_full():
                yield piece
                piece = _Piece(next(scratches), piece.start + piece.length)
    if piece.length > 0:
        yield piece


def _segments(ranges: Sequence[Range], size: int) -> Iterator[tuple[Range | None, int]]:
    """A whole file in order: ranges that are wanted, and lengths of what is not."""
    at = 0
    for wanted in ranges:
        yield None, wanted.start - at
        yield wanted, wanted.length
        at = wanted.start + wanted.length
    yield None, size - at


def _read(file: int, path: Path, parts: Iterable[memoryview], at: int) -> None:
    """Fill `parts` one after the other with what stands at `at` in the file.

    Raises:
        ArtifactError: it cannot be read, or the file ends before.
    """
    left = [part for part in parts if len(part) > 0]
    while left:
        try:
            count = os.preadv(file, left, at)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
        if count == 0:
            raise ArtifactError(f"{path}: has become shorter while it was read")
        at += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count > 0:
            left[0] = left[0][count:]
