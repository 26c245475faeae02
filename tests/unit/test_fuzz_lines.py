"""Lines of other programs, damaged: counted as malformed, or refused in this project's words."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_gemm_format_bench_line as bench_lines
import test_gemm_format_bench_yaml as bench_yaml
import test_gemm_format_cublaslt_log as cublaslt
import test_gemm_format_verbose as verbose
import test_gemm_hipblaslt_output as bench_output
import zstandard
from damage import damaged, fuzz, refuses_or_reads
from hipblaslt_machine import rocminfo_text
from hypothesis import given

from primus.dataset.text import BadRecord, TextFile, parse
from primus.errors import DataError
from primus.gemm.formats.bench_line import BenchLine
from primus.gemm.formats.bench_yaml import read_profile
from primus.gemm.formats.cublaslt_log import parse_trace, split_trace
from primus.gemm.formats.mkl_verbose import parse_mkl
from primus.gemm.formats.onednn_verbose import parse_onednn
from primus.gemm.formats.stream import read_dump
from primus.gemm.hipblaslt.gpus import parse_rocminfo
from primus.gemm.hipblaslt.output import parse_output
from primus.launch import time_left
from primus.slurm import queue

DUMPS: dict[str, tuple[list[str], Callable[[Path], Any]]] = {
    "hipBLASLt lines": (
        [bench_lines.ISSUE, bench_lines.PAGE, bench_lines.INTEGERS],
        lambda path: read_dump([path], BenchLine.parse, max_skipped=1.0),
    ),
    "hipBLASLt profile": (
        [bench_yaml.RECORD, bench_yaml.GROUPED],
        lambda path: read_profile([path], max_skipped=1.0),
    ),
    "cuBLASLt log": (
        [cublaslt.TYPED, cublaslt.FP8, cublaslt.BLOCKS],
        lambda path: read_dump([path], parse_trace, max_skipped=1.0, split=split_trace),
    ),
    "MKL": (
        [verbose.BATCH, verbose.BF16],
        lambda path: read_dump([path], parse_mkl, max_skipped=1.0),
    ),
    "oneDNN": (
        [verbose.ONEDNN, verbose.BATCHED, verbose.OLDER],
        lambda path: read_dump([path], parse_onednn, max_skipped=1.0),
    ),
}


@pytest.mark.fault(
    26,
    25,
    injected="dumps of five libraries: bytes flipped, cut, repeated; numbers and words odd",
    observed="read, counted as malformed, or refused in one line; no traceback, no hang",
)
@pytest.mark.parametrize("name", DUMPS)
def test_fuzz_dumps(name: str, tmp_path: Path) -> None:
    lines, read = DUMPS[name]
    path = tmp_path / "dump"
    whole = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(whole)
    assert read(path).calls
    assert read(path).skipped == 0

    @fuzz
    @given(damaged([whole]))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        refuses_or_reads(lambda: read(path))

    check()


@fuzz
@given(damaged([bench_output.survey().encode()]))
def test_fuzz_output_of_the_bench(content: bytes) -> None:
    refuses_or_reads(lambda: parse_output(content.decode(errors="replace").splitlines()))


@fuzz
@given(damaged([rocminfo_text().encode()]))
def test_fuzz_rocminfo(content: bytes) -> None:
    refuses_or_reads(lambda: parse_rocminfo(content.decode(errors="replace")))


JSONL = b'{"text": "one"}\n{"text": "two \\u00e9"}\n\n{"text": "three"}\n' * 3
PLAIN = "one\n\f\ntwo é\r\nthree\n".encode() * 3
PACKING = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read_text(path: Path) -> None:
    """As the data stage does, a few bad lines allowed."""
    source = TextFile(str(path))
    for record in source.records():
        try:
            parse(source.kind, record.raw, "text")
        except BadRecord:
            continue


@pytest.mark.fault(
    35,
    33,
    injected="text and JSON lines, plain, .gz and .zst, bytes flipped, cut, repeated, spliced",
    observed="read, a bad line named, or the file refused as damaged or cut short",
)
@pytest.mark.parametrize("packing", PACKING)
@pytest.mark.parametrize(("kind", "text"), [("jsonl", JSONL), ("txt", PLAIN)], ids=["jsonl", "txt"])
def test_fuzz_text(kind: str, text: bytes, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}{packing}"
    pack = PACKING[packing]

    @fuzz
    @given(damaged([pack(text), pack(text) + pack(text)]))
    def packed_then_damaged(content: bytes) -> None:
        path.write_bytes(content)
        refuses_or_reads(lambda: read_text(path))

    @fuzz
    @given(damaged([text]))
    def damaged_then_packed(content: bytes) -> None:
        path.write_bytes(pack(content))
        refuses_or_reads(lambda: read_text(path))

    packed_then_damaged()
    damaged_then_packed()


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".bz2", bz2.compress)])
def test_another_packing_is_no_known_kind(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(pack(JSONL))
    with pytest.raises(DataError, match="unknown kind of file"):
        TextFile(str(path))


QUEUE = b"17|RUNNING|primus:0123456789abcdef:-|node[1-2]|train.x\n18|PENDING|mine|(Resources)|y\n"
STATE = b"CANCELLED by 0|None|1-00:00:00|node[1-2]|16000M\nCOMPLETED|None|60|n1|1G\n"


def answering(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """A cluster whose commands answer with that."""
    text = content.decode(errors="replace")
    monkeypatch.setattr(queue, "ask", lambda *_: text)


@fuzz
@given(damaged([QUEUE, STATE]))
def test_fuzz_answers_of_the_cluster(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        answering(patch, content)
        refuses_or_reads(queue.mine)
        refuses_or_reads(lambda: queue.find(lambda job: job.key == "0123456789abcdef"))
        refuses_or_reads(lambda: queue.state_of("17"))


@fuzz
@given(damaged([b"1-02:03:04", b"03:04", b"UNLIMITED", b"NOT_SET"]))
def test_fuzz_time_left(content: bytes) -> None:
    refuses_or_reads(lambda: time_left(content.decode(errors="replace")))
