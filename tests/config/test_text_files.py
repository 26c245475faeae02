"""Whether the files of the user are still those that something was made from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primus.config import text_files


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "small.txt").write_text("one")
    (tmp_path / "large.txt").write_bytes(b"x" * 1_000_001)
    return ["small.txt", "large.txt"]


def state_after(path: Path, content: bytes, files: list[str]) -> str:
    """Of `files` once one of them was replaced, with the time of the old one."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return text_files.state(files, path.parent)


def test_a_replaced_file_is_another_state(tmp_path: Path, files: list[str]) -> None:
    first = text_files.state(files, tmp_path)
    assert first.startswith("2 files, 1000004 bytes, ")
    assert text_files.state(files[::-1], tmp_path) == first
    assert state_after(tmp_path / "small.txt", b"two", files) != first
    assert state_after(tmp_path / "small.txt", b"one", files) == first
    assert state_after(tmp_path / "large.txt", b"x" * 1_000_002, files) != first


def test_a_time_counts_where_the_content_is_not_read(tmp_path: Path, files: list[str]) -> None:
    first = text_files.state(files, tmp_path)
    os.utime(tmp_path / "small.txt", (1e9, 1e9))
    assert text_files.state(files, tmp_path) == first
    os.utime(tmp_path / "large.txt", (1e9, 1e9))
    assert text_files.state(files, tmp_path) != first


def test_of_very_many_small_files_sizes_count(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_READ", 2)
    first = text_files.state(files, tmp_path)
    assert state_after(tmp_path / "small.txt", b"two", files) == first
    assert state_after(tmp_path / "small.txt", b"three", files) != first


def test_no_files_have_no_state(tmp_path: Path) -> None:
    assert text_files.state([], tmp_path) == ""
