"""Read the dumps of many ranks in a stream: a line that repeats is read once.

A training run logs the same few dozen GEMMs over and over, so whole blocks of lines are counted
before any of them is parsed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from primus.errors import ArtifactError

T = TypeVar("T", bound=Hashable)

BLOCK = 1 << 22
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


def read_dump(
    paths: Iterable[Path],
    parse: Callable[[str], T | None],
    *,
    max_skipped: float = 0.01,
    varying: re.Pattern[bytes] | None = None,
) -> Dump[T]:
    """Count what the lines of some files say.

    Args:
        paths: the files, one per rank as a rule.
        parse: reads a line without its newline; None for a line of something else.
        max_skipped: part of the lines that are not something else that may be malformed. The
            last line of a file, torn when its rank was killed, does not count.
        varying: what differs between lines that say the same (times, addresses). It is cut out
            before lines are compared, and `parse` does not see it. It must match no newline.

    Raises:
        ArtifactError: a file cannot be read, or too many lines are malformed.
    """
    reader = _Reader(parse, varying)
    number = 0
    for path in paths:
        number += 1
        try:
            with path.open("rb") as file:
                reader.read(path, file)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot read the dump: {error.strerror}") from error
    dump, bad = reader.dump, reader.dump.skipped - reader.torn
    said = dump.calls.total() + bad
    if bad > max_skipped * said:
        raise ArtifactError(
            f"{bad} of {said} lines in {number} dump(s) are malformed, more than "
            f"{max_skipped:.3g} of them: {dump.examples[0]}. Fix: dump again, one file per process"
        )
    return dump


class _Reader(Generic[T]):
    def __init__(self, parse: Callable[[str], T | None], varying: re.Pattern[bytes] | None) -> None:
        self.dump: Dump[T] = Dump()
        self.torn = 0
        self._parse = parse
        self._varying = varying
        self._known: dict[bytes, T | None] = {}

    def read(self, path: Path, file: BinaryIO) -> None:
        """Count the lines of one file."""
        number = 1
        for block in _blocks(file):
            text = block if self._varying is None else self._varying.sub(b"", block)
            lines = text.split(b"\n")
            last = lines.pop()
            for line, count in Counter(lines).items():
                why = self._count(line, count)
                if why is not None:
                    self.dump.skipped += count
                    if len(self.dump.examples) < MAX_EXAMPLES:
                        self._example(path, number + lines.index(line), why)
            number += len(lines)
            if last:
                number += 1
                self.torn += 1
                self.dump.skipped += 1
                self._example(path, number - 1, "ends without a newline")
        self.dump.lines += number - 1

    def _count(self, line: bytes, count: int) -> str | None:
        """Why the line is malformed, None where it is not and was counted."""
        try:
            found = self._known[line]
        except KeyError:
            try:
                found = self._parse_line(line)
            except ValueError as error:
                return str(error)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[line] = found
        if found is not None:
            self.dump.calls[found] += count
        return None

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

    def _example(self, path: Path, number: int, why: str) -> None:
        if len(self.dump.examples) < MAX_EXAMPLES:
            self.dump.examples.append(f"{path}:{number}: {why}")


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
