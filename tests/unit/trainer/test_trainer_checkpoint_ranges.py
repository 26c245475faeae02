"""A file in one pass: every range where it belongs, every byte through the hash."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus.artifacts.manifest import AnyRecord, Blake3Record, FileRecord
from primus.trainer import checkpoint_ranges as ranges

SIZE = 10_007
RECORDS = pytest.mark.parametrize("kind", [FileRecord, Blake3Record], ids=["SHA-256", "BLAKE3"])


class Wanted(ranges.Range):
    """A range into its own memory."""

    def __init__(self, start: int, length: int) -> None:
        super().__init__(start, length)
        self.found = bytearray(length)
        self.asked = self.told = 0

    def memory(self) -> memoryview:
        self.asked += 1
        return memoryview(self.found)

    def ready(self) -> None:
        self.told += 1
        self.when_told = bytes(self.found)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_PIECE", 1000)
    monkeypatch.setattr(ranges, "_PARTS", 4)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    content = random.Random(0).randbytes(SIZE)
    (tmp_path / "file").write_bytes(content)
    return content


def whole(wanted: list[Wanted], content: bytes) -> None:
    for part in wanted:
        assert part.when_told == content[part.start : part.start + part.length]
        assert (part.asked, part.told) == (1, 1)


@RECORDS
@pytest.mark.parametrize("seed", range(8))
def test_ranges_of_any_kind(
    tmp_path: Path, content: bytes, kind: type[AnyRecord], seed: int
) -> None:
    """Side by side, apart, one in the other, over the ends of pieces."""
    draw = random.Random(seed)
    record, wanted = kind.of(tmp_path / "file"), []
    for _ in range(draw.choice([0, 1, 5, 60])):
        start = draw.randrange(SIZE)
        wanted.append(Wanted(start, draw.randint(1, min(SIZE - start, draw.choice([3, 4000])))))
    assert ranges.read(tmp_path, {"file": wanted}, {"file": record}) == []
    whole(wanted, content)
    again = [Wanted(part.start, part.length) for part in wanted]
    assert ranges.read(tmp_path, {"file": again}, {}) == [], "of a file that another rank verifies"
    whole(again, content)


@RECORDS
@pytest.mark.parametrize("wanted", [[], [(0, SIZE)], [(4000, 3)], [(0, 5), (5, 7), (12, 3000)]])
@pytest.mark.parametrize("at", [0, 4001, SIZE - 1])
def test_a_changed_byte_is_found_wanted_or_not(
    tmp_path: Path, content: bytes, kind: type[AnyRecord], wanted: list[tuple[int, int]], at: int
) -> None:
    path = tmp_path / "file"
    record = kind.of(path)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    asked = {"file": [Wanted(*part) for part in wanted]}
    (problem,) = ranges.read(tmp_path, asked, {"file": record})
    assert problem == (
        f"{path}: {kind.algorithm} {kind.hash_of(path)}, its manifest says {record.digest}"
    )


@pytest.mark.parametrize("vouched", [True, False], ids=["own file", "another rank's"])
def test_a_file_that_ends_too_soon(tmp_path: Path, content: bytes, vouched: bool) -> None:
    path = tmp_path / "file"
    record = {"file": Blake3Record.of(path)} if vouched else {}
    os.truncate(path, 5000)
    early, late = Wanted(100, 3000), Wanted(4000, 2000)
    assert ranges.read(tmp_path, {"file": [early, late]}, record) == [
        f"{path}: has become shorter while it was read"
    ]
    whole([early], content)
    assert late.told == 0


def test_a_file_that_grew(tmp_path: Path, content: bytes) -> None:
    record = Blake3Record.of(tmp_path / "file")
    (tmp_path / "file").write_bytes(content + b"x")
    (problem,) = ranges.read(tmp_path, {}, {"file": record})
    assert f"has {SIZE + 1} bytes, its manifest says {SIZE}" in problem


def failing(after: int) -> Callable[..., int]:
    """os.preadv whose calls fail after so many."""
    calls, preadv = iter(range(100)), os.preadv

    def fail(*arguments: Any) -> int:
        if next(calls) >= after:
            raise OSError(5, "Input/output error")
        return preadv(*arguments)

    return fail


@pytest.mark.parametrize("vouched", [True, False], ids=["own file", "another rank's"])
def test_a_disk_that_fails_is_named_with_the_file(
    tmp_path: Path, content: bytes, vouched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"file": Blake3Record.of(tmp_path / "file")} if vouched else {}
    monkeypatch.setattr(os, "preadv", failing(1))
    wanted = [Wanted(start, 10) for start in (0, 4000, 8000)]
    problems = ranges.read(tmp_path, {"file": wanted, "other": [Wanted(0, 1)]}, record)
    assert problems == [
        f"{tmp_path}/file: cannot be read: Input/output error",
        f"{tmp_path}/other: cannot be read: No such file or directory",
    ]


def test_a_call_that_reads_less_goes_on(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def short(file: int, parts: list[memoryview], at: int) -> int:
        return preadv(file, [parts[0][:333]], at)

    monkeypatch.setattr(os, "preadv", short)
    wanted = [Wanted(10, 700), Wanted(710, 1), Wanted(2000, 3000)]
    record = Blake3Record.of(tmp_path / "file")
    assert ranges.read(tmp_path, {"file": wanted}, {"file": record}) == []
    whole(wanted, content)


def test_each_byte_is_read_once(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, total = os.preadv, 0

    def counted(*arguments: Any) -> int:
        nonlocal total
        count = preadv(*arguments)
        total += count
        return count

    monkeypatch.setattr(os, "preadv", counted)
    wanted = [Wanted(start, 499) for start in range(3, SIZE - 500, 500)]
    record = Blake3Record.of(tmp_path / "file")
    assert ranges.read(tmp_path, {"file": wanted}, {"file": record}) == []
    assert total == SIZE


def test_what_a_range_raises_is_raised(tmp_path: Path, content: bytes) -> None:
    class Odd(Wanted):
        def ready(self) -> None:
            raise ValueError("does not fit")

    record = Blake3Record.of(tmp_path / "file")
    for vouched in ({"file": record}, {}):
        with pytest.raises(ValueError, match="does not fit"):
            ranges.read(tmp_path, {"file": [Odd(10, 10)]}, vouched)
