"""Read the dumps of many ranks in a stream: a line that repeats is read once.

A training run logs the same few dozen GEMMs over and over, so whole blocks of lines are counted
before any of them is parsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from primus.errors import ArtifactError

T = TypeVar("T", bound=Hashable)

# Larger blocks leave the processor's cache, and take twice the time.
BLOCK = 1 << 17
MAX_LINE = 1 << 20
MAX_REMEMBERED = 1 << 14
MAX_EXAMPLES = 10


@dataclass
class Dump(Generic[T]):
    """What a dump holds.

    Attributes:
        calls: how often each thing was logged.
        lines: all lines, whatever they hold.
        skipped: lines that are malformed, blank or end without a newline.
        examples: `file:line: why` of the first skipped ones.
    """

    calls: Counter[T] = field(default_factory=Counter)
    lines: int = 0
    skipped: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Found(Generic[T]):
    value: T | None
    calls: int


def _split(block: bytes) -> list[bytes]:
    return block.split(b"\n")


def read_dump(
    paths: Iterable[Path],
    parse: Callable[[str], T | None],
    *,
    max_skipped: float = 0.01,
    split: Callable[[bytes], list[bytes]] = _split,
) -> Dump[T]:
    """Count what the lines of some files say.

    Args:
        paths: the files, one per rank as a rule.
        parse: reads a line without its newline; None for a line of something else.
        max_skipped: part of the lines that are not something else that may be malformed. The
            last line of a file, torn when its rank was killed, does not count.
        split: splits whole lines at their newlines, an empty line after the last one. It may cut
            out what differs between lines that say the same (times, addresses), so that they
            count as one; `parse` does not see that then.

    Raises:
        ArtifactError: a file cannot be read, or too many lines are malformed.
    """
    reader = _Reader(parse, split)
    number = 0
    for path in paths:
        number += 1
        try:
            with path.open("rb") as file:
                reader.read(path, file)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot read the dump: {error.strerror}") from error
    dump = reader.fold()
    bad = dump.skipped
    said = dump.calls.total() + bad
    if bad > max_skipped * said:
        raise ArtifactError(
            f"{bad} of {said} lines in {number} dump(s) are malformed, more than "
            f"{max_skipped:.3g} of them: {dump.examples[0]}. Fix: dump again, one file per process"
        )
    dump.skipped += len(reader.torn)
    dump.examples += reader.torn[: MAX_EXAMPLES - len(dump.examples)]
    return dump


class _Reader(Generic[T]):
    def __init__(
        self, parse: Callable[[str], T | None], split: Callable[[bytes], list[bytes]]
    ) -> None:
        self.dump: Dump[T] = Dump()
        self.torn: list[str] = []
        self._parse = parse
        self._split = split
        self._found: dict[bytes, _Found[T]] = {}

    def read(self, path: Path, file: BinaryIO) -> None:
        """Count the lines of one file."""
        lines = 0
        counts: Counter[bytes] = Counter()
        for block in _blocks(file):
            found = self._split(block)
            last = found.pop()
            lines += len(found)
            counts.update(found)
            if last:
                lines += 1
                self.torn.append(f"{path}:{lines}: ends without a newline")
            if len(counts) > MAX_REMEMBERED:
                self._count(counts, path, file)
                counts.clear()
        self._count(counts, path, file)
        self.dump.lines += lines

    def fold(self) -> Dump[T]:
        """The dump so far."""
        for found in self._found.values():
            if found.value is not None and found.calls:
                self.dump.calls[found.value] += found.calls
        self._found.clear()
        return self.dump

    def _count(self, counts: Mapping[bytes, int], path: Path, file: BinaryIO) -> None:
        for line, count in counts.items():
            try:
                # A problem takes long to hash: its calls are added up here, by line.
                self._found[line].calls += count
            except KeyError:
                try:
                    found = _Found(self._parse_line(line), count)
                except ValueError as error:
                    self.dump.skipped += count
                    if len(self.dump.examples) < MAX_EXAMPLES:
                        where = f"{path}:{self._number(file, line)}"
                        self.dump.examples.append(f"{where}: {error}")
                    continue
                if len(self._found) >= MAX_REMEMBERED:
                    self.fold()
                self._found[line] = found

    def _parse_line(self, line: bytes) -> T | None:
        if not line or line.isspace():
            raise ValueError("blank")
        if len(line) > MAX_LINE:
            raise ValueError(f"{len(line)} bytes long")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"not text from byte {error.start + 1} on") from None
        return self._parse(text)

    def _number(self, file: BinaryIO, line: bytes) -> int:
        """Where the line stands first; the file is read again up to there."""
        place = file.tell()
        file.seek(0)
        number = 1
        for block in _blocks(file):
            lines = self._split(block)
            if line in lines:
                number += lines.index(line)
                break
            number += len(lines) - 1
        file.seek(place)
        return number


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces that end with a newline, but for the last; a longer line is one piece."""
    parts: list[bytes] = []
    while block := file.read(BLOCK):
        cut = block.rfind(b"\n") + 1
        if not cut:
            parts.append(block)
            continue
        parts.append(block[:cut])
        yield b"".join(parts)
        parts = [block[cut:]] if cut < len(block) else []
    if parts:
        yield b"".join(parts)
