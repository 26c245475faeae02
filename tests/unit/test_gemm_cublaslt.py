"""What of cuBLASLt's backend is Python: the text of a problem, the file, the reports."""

from __future__ import annotations

import os
import subprocess
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.errors import ArtifactError, UnavailableError
from primus.gemm.backends.base import DEFAULT, BackendSpec
from primus.gemm.backends.cublaslt import CublasltBackend
from primus.gemm.cublaslt import build, tuner
from primus.gemm.cublaslt.algo_file import (
    FILE_NAME,
    AlgorithmHeader,
    Entry,
    entries_of,
    read_algorithms,
    write_algorithms,
)
from primus.gemm.cublaslt.problem_text import EPILOGUES, parse_problem, render_problem
from primus.gemm.cublaslt.use import use_of
from primus.gemm.problem import Problem

HEADER = AlgorithmHeader("130102", "NVIDIA H200", 132, "9.0")
SIZES = st.integers(1, 1 << 20)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """What cuBLASLt's descriptors can say, with alpha 1 and beta 0."""
    batch_count = draw(st.integers(1, 64))
    epilogue = draw(st.sampled_from(sorted(EPILOGUES)))
    narrow = draw(st.booleans())
    fields: dict[str, Any] = {name: draw(SIZES) for name in ("m", "n", "k")}
    fields |= {name: draw(SIZES) for name in ("lda", "ldb", "ldc", "ldd")}
    fields |= {name: draw(st.sampled_from("NTC")) for name in ("transA", "transB")}
    if batch_count > 1:
        fields |= {f"stride_{letter}": draw(SIZES) for letter in "abcd"}
    types = st.sampled_from(["f8_r", "bf8_r"] if narrow else ["bf16_r", "f16_r", "f32_r"])
    fields |= {name: draw(types) for name in ("a_type", "b_type")}
    fields |= {name: draw(st.sampled_from(["bf16_r", "f32_r"])) for name in ("c_type", "d_type")}
    if narrow:
        scales = st.sampled_from(["0", "1", "2", "3", "6", "VEC128_32F", "BLK128x128_32F"])
        fields |= {f"scale{letter}": draw(scales) for letter in "ABCD"}
        fields |= {"amaxD": draw(st.booleans()), "fast_accumulation": draw(st.booleans())}
    said = EPILOGUES[epilogue]
    if said.get("bias_vector"):
        fields["bias_type"] = draw(st.sampled_from(["bf16_r", "f32_r"]))
    if said.get("use_e"):
        fields |= {"aux_type": draw(st.sampled_from(["bf16_r", "f32_r"])), "lde": draw(SIZES)}
        if batch_count > 1:
            fields["stride_e"] = draw(SIZES)
    compute = draw(st.sampled_from(["f32_r", "xf32_r", "f32_bf16_r"]))
    return Problem(**fields, **said, batch_count=batch_count, compute_type=compute)


@given(problems())
def test_a_problem_and_its_text_say_the_same(problem: Problem) -> None:
    assert parse_problem(render_problem(problem)) == problem


def test_the_text_for_people() -> None:
    problem = Problem(m=8, n=4, k=2, transA="T", a_type="bf16_r", bias_vector=True, beta=1.0)
    assert render_problem(problem) == (
        "transA=T transB=N m=8 n=4 k=2 a_type=bf16_r b_type=bf16_r c_type=bf16_r d_type=bf16_r "
        "compute_type=f32_r scale_type=f32_r lda=2 ldb=2 ldc=8 ldd=8 epilogue=bias bias_type=bf16_r"
    )


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"grouped_gemm": True}, "grouped_gemm"),
        ({"swizzleA": True}, "swizzleA"),
        ({"activation_type": "swish"}, "no epilogue with activation_type=swish"),
        ({"use_e": True}, "no epilogue with activation_type=none use_e=True"),
        ({"a_type": "f8_fnuz_r"}, "no a_type f8_fnuz_r"),
        ({"compute_type": "f32_f8_r"}, "no compute_type"),
        ({"scaleA": "1"}, "no scale factors for f32_r"),
        ({"a_type": "f8_r", "scaleA": "9"}, "no scale mode 9"),
    ],
)
def test_what_the_library_cannot_say(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        render_problem(Problem(m=8, n=8, k=8, **fields))


@pytest.mark.parametrize(
    "text", ["", "m=1", "m", "transA=T q=1", "transA=T transA=T", "transA=Q epilogue=sin"]
)
def test_a_text_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"field"):
        parse_problem(text)


def row(problem: Problem, calls: int, times: dict[str, float], candidate: str) -> TunedRow:
    others = {name: us for name, us in times.items() if name not in (DEFAULT, candidate)}
    return TunedRow(
        problem=problem.to_json(),
        text=str(problem),
        calls=calls,
        phases={"step": calls},
        flops=problem.flops,
        default_us=times[DEFAULT],
        candidate=candidate,
        tuned_us=times[candidate],
        gain=1 - times[candidate] / times[DEFAULT],
        numerics="rounding",
        reason="",
        others=others,
    )


PLAIN = Problem(m=64, n=32, k=16, a_type="bf16_r")
ADDED = Problem(m=64, n=32, k=16, a_type="bf16_r", beta=1.0)
SCALED = Problem(m=64, n=32, k=16, a_type="bf16_r", alpha=0.5)


@pytest.mark.parametrize(
    ("plain", "added", "winner"),
    [
        # Both say the same: nothing to decide.
        ((1, {"default": 10, "x": 8}, "x"), (9, {"default": 10, "x": 9}, "x"), "x"),
        # What one gains, the other loses more often.
        ((1, {"default": 10, "x": 5}, "x"), (9, {"default": 10, "x": 11}, "default"), "default"),
        ((9, {"default": 10, "x": 5}, "x"), (1, {"default": 10, "x": 11}, "default"), "x"),
        ((1, {"default": 10, "x": 5, "y": 6}, "x"), (1, {"default": 9, "x": 9, "y": 4}, "y"), "y"),
        # Not timed in both.
        ((9, {"default": 10, "x": 5}, "x"), (1, {"default": 10, "y": 5}, "y"), "default"),
    ],
)
def test_problems_that_share_a_line_take_what_is_best_for_all_calls(
    plain: tuple[int, dict[str, float], str], added: tuple[int, dict[str, float], str], winner: str
) -> None:
    (entry,) = entries_of([row(PLAIN, *plain), row(ADDED, *added)])
    assert (entry.problem, entry.algorithm) == (render_problem(PLAIN), winner)
    assert bool(entry.note) == (plain[2] != added[2])


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    entries = [
        Entry(render_problem(PLAIN), "Gemm_Cublaslt_id_1", note="something to say"),
        Entry(render_problem(Problem(m=1, n=2, k=3)), DEFAULT, "n"),
        Entry(render_problem(Problem(m=1, n=2, k=4)), DEFAULT, "k"),
    ]
    path = tmp_path / FILE_NAME
    write_algorithms(path, HEADER, entries)
    header, found = read_algorithms(path)
    assert header == HEADER
    assert [(e.problem, e.algorithm, e.tokens) for e in found] == [
        (e.problem, e.algorithm, e.tokens) for e in entries
    ]
    text = path.read_text()
    for damaged, why in (
        (text.rpartition("\n")[0][:-2], "torn"),
        ("\n".join(text.splitlines()[:-1]), "has 2 problems, its header says 3"),
        (text.replace("primus-cublaslt 1", "primus-cublaslt 9"), "not a file"),
        ("", "not a file"),
    ):
        path.write_text(damaged)
        with pytest.raises(ArtifactError, match=why):
            read_algorithms(path)


def report(*problems: dict[str, Any], **totals: Any) -> dict[str, Any]:
    base = {"refused": "", "hits": 0, "defaults": 0, "misses": 0, "rejections": 0}
    return {**base, "passed": 0, "inexpressible": 0, **totals, "problems": list(problems)}


def test_calls_of_problems_that_share_a_line_are_shared_as_recorded() -> None:
    rows = [
        row(PLAIN, 2, {"default": 10, "x": 8}, "x"),
        row(ADDED, 1, {"default": 9, "y": 8}, "y"),
        row(SCALED, 1, {"default": 9}, DEFAULT),
    ]
    text = render_problem(PLAIN)
    hit = {"problem": text, "kind": "hit", "algorithm": "x", "calls": 11}
    use = use_of(rows, report(hit, hits=11))
    assert [line["calls"] for line in use.problems] == [5, 3, 3]
    assert [line["candidate"] for line in use.problems] == ["x"] * 3
    assert [line.get("why", "")[:10] for line in use.problems] == ["", "y won here", "default wo"]
    assert use.hits == 11


def test_rejections_nearest_sizes_and_strangers() -> None:
    experts = row(PLAIN, 1, {"default": 10, "x": 8}, "x")
    other, stranger = Problem(m=64, n=33, k=16, a_type="bf16_r"), Problem(m=5, n=6, k=7)
    text = render_problem(PLAIN)
    use = use_of(
        [experts],
        report(
            {"problem": text, "kind": "hit", "algorithm": "x", "calls": 3},
            {
                "problem": render_problem(other),
                "kind": "hit",
                "algorithm": "x",
                "calls": 4,
                "nearest": text,
            },
            {
                "problem": text,
                "kind": "rejected",
                "algorithm": "x",
                "calls": 2,
                "reason": "too little workspace",
            },
            {"problem": render_problem(stranger), "kind": "miss", "calls": 6},
            hits=7,
            rejections=2,
            misses=6,
            inexpressible=1,
        ),
    )
    assert (use.hits, use.misses, use.rejections) == (7, 7, 2)
    lines = {(line["problem"], line["use"]): line for line in use.problems}
    assert lines[str(PLAIN), "hit"]["calls"] == 7
    assert lines[str(PLAIN), "hit"]["nearest"] == 4
    assert lines[str(PLAIN), "rejection"]["why"] == "too little workspace"
    assert lines[str(stranger), "miss"]["calls"] == 6


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "libprimus_cublaslt.so is not preloaded in this process"),
        (report(refused="tuned on NVIDIA H100", passed=5), "tuned on NVIDIA H100"),
        (report(), "never called"),
    ],
)
def test_a_result_that_was_not_used_says_why(found: dict[str, Any] | None, why: str) -> None:
    use = use_of([row(PLAIN, 1, {"default": 10, "x": 8}, "x")], found)
    (line,) = use.problems
    assert (use.hits, line["use"], line["calls"], line["why"]) == (0, "unused", 0, why)


def header_of(stack: dict[str, Any]) -> TunedHeader:
    counts = {"problems": 1, "timed": 1, "winners": 1, "failed": 0}
    return TunedHeader(
        backend="cublaslt",
        stack=stack,
        settings={},
        shapes_sha256="",
        peak_tflops={},
        coverage=1.0,
        default_us=10.0,
        tuned_us=8.0,
        stopped="complete",
        **counts,
    )


def test_write_and_activate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CublasltBackend(BackendSpec(name="cublaslt"))
    stack = {
        "device": "NVIDIA H200",
        "units": 132,
        "features": ["capability 9.0"],
        "libraries": {"cublaslt": "130102", "driver": "13000"},
    }
    tuned = tmp_path / "tuned.jsonl"
    with pytest.raises(ArtifactError, match=FILE_NAME):
        backend.activate(tuned)
    (path,) = backend.write(
        header_of(stack), [row(PLAIN, 1, {"default": 10, "x": 8}, "x")], tmp_path
    )
    assert read_algorithms(path)[0] == HEADER
    monkeypatch.setattr(
        "primus.gemm.backends.cublaslt.library", lambda name: Path("/opt/cache") / name
    )
    assert backend.activate(tuned) == {
        "LD_PRELOAD": "/opt/cache/libprimus_cublaslt.so",
        "PRIMUS_CUBLASLT_FILE": str(path),
        "TORCH_BLAS_PREFER_CUBLASLT": "1",
    }
    monkeypatch.setattr("primus.gemm.backends.cublaslt.library", lambda name: Path("/a b") / name)
    with pytest.raises(UnavailableError, match="XDG_CACHE_HOME"):
        backend.activate(tuned)


def test_each_measuring_process_has_one_of_the_users_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = CublasltBackend(BackendSpec(name="cublaslt"))
    monkeypatch.setattr(CublasltBackend, "devices", lambda self: 2)
    for visible, wanted in ((None, ["0", "1", "0"]), ("5,GPU-1f", ["5", "GPU-1f", "5"])):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        else:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        found = [backend.worker_environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(3)]
        assert found == wanted


def test_the_library_that_lies_beside_torch_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder of PYTHONPATH, where this environment's own packages are not."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/version.py").write_text("cuda = '13.0'\n")
    library = tmp_path / "nvidia/cu13/lib/libcublasLt.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "torch/__init__.py"))
    monkeypatch.setattr(tuner, "find_spec", {"torch": spec}.get)
    tuner.find_cublaslt.cache_clear()
    try:
        assert tuner.find_cublaslt() == str(library)
    finally:
        tuner.find_cublaslt.cache_clear()


def compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_library_is_built_once_per_source_and_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'test "$1" = --version && { echo one; exit; }; echo run >> "$(dirname $0)/log"\n'
    script += 'while [ "$1" != -o ]; do shift; done; echo built > "$2"'
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", script)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_header_directories", list)
    first = build.library("libprimus_cublaslt.so")
    assert build.library("libprimus_cublaslt.so") == first
    assert first.read_text() == "built\n"
    assert (tmp_path / "log").read_text() == "run\n"
    assert os.listdir(first.parent) == [first.name]
    compiler(tmp_path / "cxx", script.replace("echo one", "echo two"))
    assert build.library("libprimus_cublaslt.so") != first


def test_what_the_compiler_says_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "test $1 = --version && exit 0; echo 'x.h: error: no such type' >&2; exit 1"
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", script)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_header_directories", list)
    with pytest.raises(UnavailableError, match=r"x\.h: error: no such type\. Fix: ") as caught:
        build.library("libprimus_cublaslt.so")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match=r"no C\+\+ compiler on PATH"):
        build.library("libprimus_cublaslt.so")


def test_the_declarations_are_held_against_the_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(content: str) -> bool:
        (tmp_path / "cublasLt.h").write_text(content)
        return build.check_declarations(["g++"])

    monkeypatch.setattr(build, "_header_directories", lambda: [tmp_path])
    assert subprocess.run(["g++", "--version"], capture_output=True, check=False).returncode == 0
    # Headers that lack what they include themselves are no headers to check against.
    assert check('#include "missing_of_cuda.h"') is False
    with pytest.raises(UnavailableError, match="does not build"):
        check("struct cublasLtMatmulAlgo_t { unsigned long data[9]; };")
