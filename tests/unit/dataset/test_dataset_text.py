from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from primus.config.text_files import matching
from primus.dataset.bad_lines import BadLines
from primus.dataset.text import BadRecord, TextFile, _lines, expand, parse
from primus.errors import DataError

TEXTS = ["First.\n\nStill the first.", "Second: Füße, 漢字, 🦉", "Third\nin two lines"]


def read(path: Path) -> list[str]:
    file = TextFile(str(path))
    return [parse(file.kind, raw, "text") for _, raw in file.records()]


def plain(kind: str) -> bytes:
    if kind == "txt":
        return "\n\f\n".join(TEXTS).encode() + b"\n"
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_all_forms_of_a_file_give_the_same_documents(
    tmp_path: Path, kind: str, compression: str
) -> None:
    content = plain(kind)
    if compression == ".gz":  # two members, as pigz and cat write them
        content = gzip.compress(content[:20]) + gzip.compress(content[20:])
    if compression == ".zst":  # two frames, as pzstd and cat write them
        compress = zstandard.ZstdCompressor().compress
        content = compress(content[:20]) + compress(content[20:])
    path = tmp_path / f"a.{kind}{compression}"
    path.write_bytes(content)
    assert read(path) == TEXTS


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_short_is_an_error(tmp_path: Path, compression: str) -> None:
    content = random.Random(0).randbytes(100_000).hex().encode()
    compress = gzip.compress if compression == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(compress(content)[:-500])
    with pytest.raises(DataError, match=r"a\.txt.*damaged or cut short"):
        read(path)


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_its_name_says(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="damaged or cut short"):
        read(path)


def test_a_form_feed_within_a_line_does_not_separate(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\none\ftwo\r\nthree\r\n\r\n \f \r\n\n  indented\n\n")
    assert read(path) == ["one\ftwo\nthree", "  indented"]


def test_records_know_their_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"1\n2\n\f\n4\n")
    (tmp_path / "b.jsonl").write_bytes(b'\n{"text": "a"}\n\n{"text": "b"}')
    assert [r.line for r in TextFile(str(tmp_path / "a.txt")).records()] == [1, 4]
    assert [r.line for r in TextFile(str(tmp_path / "b.jsonl")).records()] == [2, 4]


@given(st.lists(st.binary(max_size=8).map(lambda b: b.replace(b"x", b"\n"))))
def test_lines_do_not_depend_on_the_chunks(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    assert list(_lines(chunks)) == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"{", "not JSON"),
        (b'["text"]', "not a JSON object"),
        (b'{"body": "a"}', "no field 'text'"),
        (b'{"text": 3}', "field 'text' is not a string"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_says_why(raw: bytes, why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        parse("jsonl", raw, "text")


def test_a_bad_byte_of_a_text_file_is_found_by_its_line() -> None:
    with pytest.raises(BadRecord, match="0xe9") as caught:
        parse("txt", b"one\ntwo\ncaf\xe9\n", "text")
    assert caught.value.lines_below == 2


def test_a_file_named_like_a_pattern_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the plan and the stage mean the same files."""
    monkeypatch.chdir(tmp_path)
    for name in ("*.txt", "a.txt", "b[1].txt", "b1.txt"):
        (tmp_path / name).write_text("x\n")
    for pattern, names in (
        ("*.txt", ["*.txt", "a.txt", "b1.txt", "b[1].txt"]),
        ("b[1].txt", ["b1.txt", "b[1].txt"]),
    ):
        assert expand([pattern]) == names
        assert matching([pattern], tmp_path) == names


def test_expand_keeps_the_order_of_patterns_and_sorts_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "z.jsonl.gz", "deep/er/c.txt.zst"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert expand(["z*", "*.txt", "a.txt", "**/c.*"]) == [
        "z.jsonl.gz", "a.txt", "b.txt", "deep/er/c.txt.zst"
    ]  # fmt: skip


def test_a_name_with_glob_characters_that_exists_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "a[1].txt"
    path.touch()
    assert expand([str(path)]) == [str(path)]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("none*.txt", "none.*matches no file"),
        ("deep", "is a directory"),
        ("a.csv", "unknown kind"),
        ("b.gz", "unknown kind"),
    ],
)
def test_expand_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    Path("a.csv").touch()
    Path("b.gz").touch()
    with pytest.raises(DataError, match=why):
        expand([pattern])


def test_bad_lines_are_counted_up_to_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    bad = BadLines(2)
    bad.add("f.jsonl", "jsonl", 3, "not JSON")
    bad.count(["g.jsonl:1: not JSON"])
    assert capsys.readouterr().err == "warning: skipped f.jsonl:3: not JSON\n"
    with pytest.raises(DataError) as caught:
        bad.add("h.jsonl", "jsonl", 9, "no field 'text'")
    lines = str(caught.value).splitlines()
    assert "3 unreadable lines, max_bad_lines = 2" in lines[0]
    assert lines[1:] == [
        "f.jsonl:3: not JSON", "g.jsonl:1: not JSON", "h.jsonl:9: no field 'text'"
    ]  # fmt: skip
