"""Documents out of plain text and JSON lines, compressed or not.

A `.jsonl` file holds one JSON object per line. A `.txt` file is one document, or several separated
by a line that holds a form feed (U+000C) and nothing else. Either may end in `.gz` or `.zst`.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Literal, NamedTuple

from primus.errors import DataError, UnavailableError

Kind = Literal["txt", "jsonl"]

_CHUNK = 1 << 20
_FORMATS = ".txt, .jsonl, each also .gz or .zst"


class Record(NamedTuple):
    """The bytes of one document as they stand in a file, and the number of their first line."""

    line: int
    raw: bytes


class BadRecord(ValueError):
    """Why a record is not a document; `lines_below` its first line stands the fault."""

    def __init__(self, why: str, lines_below: int = 0) -> None:
        super().__init__(why)
        self.lines_below = lines_below


def expand(patterns: Sequence[str], key: str = "data_path") -> list[str]:
    """The files that `patterns` name: in the order of the patterns, sorted within each, once each.

    Args:
        key: the setting that they come from, for the error.

    Raises:
        DataError: a pattern matches nothing, or names a directory or an unknown kind of file.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        # A file whose own name looks like a pattern is meant, too; it hides nothing.
        literally = {pattern} if os.path.exists(pattern) else set()
        names = sorted(literally | set(glob.glob(pattern, recursive=True)))
        files = [name for name in names if os.path.isfile(name)]
        if not files and names:
            raise DataError(
                f"{key}: {pattern} is a directory. Fix: name its files, e.g. {pattern}/*.txt"
            )
        if not files:
            raise DataError(
                f"{key}: {pattern} matches no file under {os.getcwd()}. "
                "Fix: correct the path; it is relative to the directory the command runs in"
            )
        for name in files:
            kind_of(name)
            found[name] = None
    return list(found)


def kind_of(name: str) -> tuple[Kind, str]:
    """Kind of the file and its compression ("", ".gz" or ".zst"), by its name.

    Raises:
        DataError: neither is known.
    """
    stem, suffix = os.path.splitext(name.lower())
    compression = suffix if suffix in (".gz", ".zst") else ""
    kind = os.path.splitext(stem)[1] if compression else suffix
    if kind == ".txt":
        return "txt", compression
    if kind == ".jsonl":
        return "jsonl", compression
    raise DataError(f"{name}: unknown kind of file. Fix: use one of {_FORMATS}")


class TextFile:
    """A file of documents.

    Attributes:
        name: path as configured.
        position: bytes of the file read so far, compressed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind, self._compression = kind_of(name)
        self.position = 0

    def records(self) -> Iterator[Record]:
        """Every document's bytes, in order; blank lines of a .jsonl file are none.

        Raises:
            DataError: the file cannot be read, or its compressed data is damaged or cut short.
        """
        split = _json_records if self.kind == "jsonl" else _text_records
        try:
            with open(self.name, "rb") as stream:
                for record in split(_lines(self._chunks(stream))):
                    self.position = stream.tell()
                    yield record
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.name}: damaged or cut short: {error}") from error
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror}") from error

    def _chunks(self, stream: IO[bytes]) -> Iterator[bytes]:
        if self._compression == ".zst":
            return _zstd_chunks(stream)
        opened: Any = gzip.GzipFile(fileobj=stream) if self._compression else stream
        return iter(lambda: opened.read(_CHUNK), b"")


def _zstd_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    # zstandard's own stream reader takes a file that was cut short for a whole one.
    try:
        import zstandard
    except ImportError as error:
        raise UnavailableError(
            ".zst files need the package zstandard. Fix: pip install zstandard"
        ) from error
    frame, pending = None, False
    while chunk := stream.read(_CHUNK):
        while chunk:
            if frame is None:
                frame, pending = zstandard.ZstdDecompressor().decompressobj(), True
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise zlib.error(str(error)) from error
            chunk = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, pending = None, False
    if pending:
        raise EOFError("the last zstd frame has no end")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    if last := b"".join(parts):
        yield last


def _json_records(lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Record(number, line)


def _text_records(lines: Iterable[bytes]) -> Iterator[Record]:
    start, document = 1, list[bytes]()
    for number, line in enumerate(lines, 1):
        if line.strip(b" \t\r") == b"\f":
            yield Record(start, b"\n".join(document))
            start, document = number + 1, []
        else:
            document.append(line)
    if document:
        yield Record(start, b"\n".join(document))


def parse(kind: Kind, raw: bytes, json_key: str) -> str:
    """The text of a record; surrounding blank lines of a .txt document are left out.

    Raises:
        BadRecord: it is not UTF-8, not JSON, or has no string under `json_key`.
    """
    return _parse_text(raw) if kind == "txt" else _parse_json(raw, json_key)


def _parse_text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"not UTF-8: byte 0x{raw[error.start]:02x}"
        raise BadRecord(why, raw.count(b"\n", 0, error.start)) from error
    return text.replace("\r\n", "\n").strip("\r\n")


def _parse_json(raw: bytes, json_key: str) -> str:
    try:
        value = json.loads(raw)
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadRecord("not a JSON object")
    if json_key not in value:
        raise BadRecord(f"no field {json_key!r}")
    text = value[json_key]
    if not isinstance(text, str):
        raise BadRecord(f"field {json_key!r} is not a string")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"field {json_key!r} has half of a surrogate pair") from error
    return text
