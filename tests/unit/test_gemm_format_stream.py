"""Dumps of many files: counted in a stream, damage named and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.errors import ArtifactError
from primus.gemm.formats import stream
from primus.gemm.formats.stream import read_dump


def parse(line: str) -> int | None:
    """A whole number; None for a remark."""
    return None if line.startswith("#") else int(line)


def write(directory: Path, *contents: bytes) -> list[Path]:
    paths = [directory / f"rank{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_files_are_counted_together(tmp_path: Path) -> None:
    dump = read_dump(write(tmp_path, b"1\n2\n1\n# remark\n", b"2\n 1\n", b""), parse)
    assert dump.calls == {1: 3, 2: 2}
    assert (dump.lines, dump.skipped, dump.examples) == (6, 0, [])


@pytest.mark.fault(
    26,
    injected="blank and malformed lines",
    observed="skipped, with file and line",
)
def test_damage_is_named_and_counted(tmp_path: Path) -> None:
    good = b"7\n" * 1000
    paths = write(tmp_path, good + b"x\n\n7\nx\n" + good, good + b"\xff\n" + good + b"77")
    dump = read_dump(paths, parse)
    assert dump.calls == {7: 4001}
    assert (dump.lines, dump.skipped) == (4006, 5)
    assert sorted(dump.examples) == [
        f"{paths[0]}:1001: invalid literal for int() with base 10: 'x'",
        f"{paths[0]}:1002: blank",
        f"{paths[1]}:1001: not text from byte 1 on",
        f"{paths[1]}:2002: ends without a newline",
    ]


@pytest.mark.fault(
    26,
    injected="more than 1 % of malformed lines",
    observed="an error",
)
def test_too_much_damage_is_an_error(tmp_path: Path) -> None:
    paths = write(tmp_path, b"1\n" * 98 + b"x\n" * 2 + b"# no number\n" * 1000)
    with pytest.raises(ArtifactError) as caught:
        read_dump(paths, parse)
    assert str(caught.value).startswith(
        f"2 of 100 lines in 1 dump(s) are malformed, more than 0.01 of them: {paths[0]}:99: "
    )
    assert read_dump(paths, parse, max_skipped=0.02).skipped == 2
    torn = write(tmp_path, b"1", b"1", b"1\nx\n")
    with pytest.raises(ArtifactError, match=f"1 of 2 lines .* {torn[2]}:2: invalid"):
        read_dump(torn, parse)


@pytest.mark.fault(
    25,
    injected="a last line cut short",
    observed="dropped and counted",
)
def test_a_rank_that_was_killed_is_no_error(tmp_path: Path) -> None:
    """The last line of its file is torn: it is left out, whatever it seems to say."""
    paths = write(tmp_path, b"1\n2", b"3")
    dump = read_dump(paths, parse, max_skipped=0.0)
    assert (dump.calls, dump.lines, dump.skipped) == ({1: 1}, 3, 2)
    assert dump.examples == [
        f"{paths[0]}:2: ends without a newline",
        f"{paths[1]}:1: ends without a newline",
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none: cannot read the dump: No such file"):
        read_dump([tmp_path / "none"], parse)


def test_a_line_without_end_is_malformed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stream, "MAX_LINE", 1000)
    paths = write(tmp_path, b"1\n" + b"2" * 1001 + b"\n1\n")
    dump = read_dump(paths, parse, max_skipped=1.0)
    assert (dump.calls, dump.examples) == ({1: 2}, [f"{paths[0]}:2: 1001 bytes long"])


def test_examples_end_and_counting_does_not(tmp_path: Path) -> None:
    paths = write(tmp_path, b"".join(b"x%d\n" % number for number in range(100)))
    dump = read_dump(paths, parse, max_skipped=1.0)
    assert (dump.skipped, len(dump.examples)) == (100, stream.MAX_EXAMPLES)
    assert [example.split(":")[1] for example in dump.examples] == [str(n) for n in range(1, 11)]


def test_what_varies_is_cut_out(tmp_path: Path) -> None:
    seen: list[str] = []

    def remember(line: str) -> int:
        seen.append(line)
        return int(line)

    def split(block: bytes) -> list[bytes]:
        return [line.split(b"@")[0] for line in block.split(b"\n")]

    paths = write(tmp_path, b"1@10:00\n1@10:01\n2@10:02\n", b"1@11:00\n")
    assert read_dump(paths, remember, split=split).calls == {1: 3, 2: 1}
    assert seen == ["1", "2"]


LINE = st.sampled_from([b"1", b"2", b"22", b"", b"x", b"# 1", b"333333333333"])


@given(
    st.lists(st.lists(LINE, max_size=12), max_size=3),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_neither_blocks_nor_forgetting_change_what_is_read(
    tmp_path_factory, files, ends: bool, block: int, remembered: int
) -> None:
    directory = tmp_path_factory.mktemp("dump")
    paths = write(directory, *(b"\n".join(f) + (b"\n" if ends and f else b"") for f in files))
    whole = read_dump(paths, parse, max_skipped=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK", block)
        patch.setattr(stream, "MAX_REMEMBERED", remembered)
        pieces = read_dump(paths, parse, max_skipped=1.0)
    assert (pieces.calls, pieces.lines) == (whole.calls, whole.lines)
    assert pieces.skipped == whole.skipped
    lines = [line for path in paths for line in path.read_bytes().splitlines()]
    if ends:
        assert whole.lines == len(lines)
        assert whole.calls.total() == sum(line.isdigit() for line in lines)
        assert whole.skipped == lines.count(b"") + lines.count(b"x")
