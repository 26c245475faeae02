"""The preloaded cuBLASLt libraries in processes that call a fake of the library as torch does."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cublaslt_fakes import (
    ALIGNED,
    DEFAULT_ALGORITHM,
    FAST,
    HEADER,
    INNER,
    LOSSY,
    SPLIT,
    SPLIT_WORKSPACE,
    Fakes,
    call,
    write_file,
)

from primus.errors import ArtifactError
from primus.gemm.cublaslt.algo_file import AlgorithmHeader, Entry, write_algorithms
from primus.gemm.cublaslt.dump import environment, read
from primus.gemm.cublaslt.problem_text import parse_problem, render_problem
from primus.gemm.problem import Problem

pytestmark = pytest.mark.slow

PLAIN = Problem(m=512, n=1024, k=256, transA="T", a_type="bf16_r")
BATCHED = Problem(
    m=64, n=32, k=16, a_type="bf16_r", batch_count=4, stride_a=1024, stride_b=512, stride_d=2048
)
BATCHED = Problem.from_json({**BATCHED.to_json(), "stride_c": 2048})
BIAS = Problem(m=512, n=1024, k=256, transA="T", a_type="bf16_r", bias_vector=True)
BACKWARD = Problem(
    m=64,
    n=128,
    k=256,
    a_type="bf16_r",
    activation_type="gelu",
    gradient=True,
    use_e=True,
    lde=72,
    aux_type="f32_r",
    bias_vector=True,
    bias_type="f32_r",
)
SUMS = Problem(
    m=64, n=128, k=256, a_type="bf16_r", gradient=True, bias_vector=True, bias_source="b"
)
NARROW = Problem(
    m=256,
    n=128,
    k=512,
    transA="T",
    a_type="f8_r",
    b_type="bf8_r",
    d_type="bf16_r",
    scaleA="1",
    scaleB="2",
    fast_accumulation=True,
)
DOUBLE = Problem(
    m=8, n=4, k=2, lda=9, ldb=5, ldc=11, ldd=12, transB="T", a_type="f64_r", compute_type="f64_r"
)
DOUBLE = Problem.from_json({**DOUBLE.to_json(), "scale_type": "f64_r"})
EVERY = (PLAIN, BATCHED, BIAS, BACKWARD, SUMS, NARROW, DOUBLE)


def ids(answer: dict[str, Any]) -> list[list[int]]:
    return [one["ids"] for one in answer["answers"][0]]


def kinds(answer: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {row["problem"]: (row["kind"], row["calls"]) for row in answer["use"]["problems"]}


def test_descriptors_and_problems_say_the_same(fakes: Fakes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f", dict.fromkeys(EVERY, FAST))
    answer = fakes.call(
        [call(p, times=n) for n, p in enumerate(EVERY, 1)], PRIMUS_CUBLASLT_FILE=path
    )
    assert kinds(answer) == {render_problem(p): ("hit", n) for n, p in enumerate(EVERY, 1)}
    assert {parse_problem(text) for text in kinds(answer)} == {
        parse_problem(render_problem(p)) for p in EVERY
    }
    assert answer["heuristic_calls"] == 0
    # Once decided, a call costs no check.
    assert answer["check_calls"] == len(EVERY)


def test_hit_default_and_miss(fakes: Fakes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f", {PLAIN: SPLIT, BIAS: "default"})
    answer = fakes.call(
        [call(PLAIN, times=3), call(BIAS, times=2), call(SUMS)], PRIMUS_CUBLASLT_FILE=path
    )
    assert ids(answer) == [[67], [66], [66]]
    use = answer["use"]
    assert (use["hits"], use["defaults"], use["misses"], use["rejections"]) == (3, 2, 1, 0)
    assert answer["heuristic_calls"] == 3
    assert use["entries"] == 2
    assert answer["stderr"] == ""


def test_several_algorithms_are_the_tuned_one_and_the_librarys(
    fakes: Fakes, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "f", {PLAIN: INNER})
    answer = fakes.call([call(PLAIN, requested=4)], PRIMUS_CUBLASLT_FILE=path)
    assert answer["answers"][0][0] == {
        "status": 0,
        "returned": 4,
        "ids": [70, 66, 66, 67],
        "states": [0, 0, 0, 0],
    }


@pytest.mark.parametrize(
    ("algorithm", "more", "variables", "reason"),
    [
        (FAST, {}, {"FAKE_REFUSE": "66"}, "AlgoCheck: status 15"),
        (SPLIT, {"workspace": SPLIT_WORKSPACE - 1}, {}, "bytes of workspace"),
        (ALIGNED, {"alignment": 32}, {}, "needs A aligned to 64 bytes, has 32"),
        (FAST, {"alignment": 8}, {}, "needs A aligned to 16 bytes, has 8"),
        (SPLIT, {"preference": {"3": ["I", 1]}}, {}, "reduction scheme"),
        (FAST, {"preference": {"9": ["f", 0.5]}}, {}, "waves"),
        (FAST, {"preference": {"12": ["Q", 2]}}, {}, "arithmetic"),
        (FAST.replace("id_66", "id_99"), {}, {}, "does not build"),
        (FAST.replace("tile_24", "tile_25"), {}, {}, "AlgoCheck: status 15"),
    ],
)
def test_what_cannot_serve_falls_back_and_counts(
    fakes: Fakes,
    tmp_path: Path,
    algorithm: str,
    more: dict[str, Any],
    variables: dict[str, str],
    reason: str,
) -> None:
    path = write_file(tmp_path / "f", {PLAIN: algorithm})
    answer = fakes.call(
        [call(PLAIN, times=2, **more), call(PLAIN, times=1)],
        PRIMUS_CUBLASLT_FILE=path,
        **variables,
    )
    first = answer["answers"][0][0]
    assert (first["status"], first["ids"]) == (0, [66])
    rejected = [row for row in answer["use"]["problems"] if row["kind"] == "rejected"]
    assert reason in rejected[0]["reason"]
    # The same problem with nothing in the way is served.
    served = not variables and algorithm in (FAST, SPLIT, ALIGNED)
    assert (answer["use"]["hits"], answer["use"]["rejections"]) == ((1, 2) if served else (0, 3))


@pytest.mark.parametrize(
    ("header", "variables", "why"),
    [
        (HEADER, {"FAKE_VERSION": "130200"}, "tuned with cuBLASLt 130102, here is 130200"),
        (AlgorithmHeader("130102", "Other", 132, "9.0"), {}, "tuned on Other"),
        (AlgorithmHeader("130102", "Fake GPU", 144, "9.0"), {}, "tuned on Fake GPU (144"),
        (AlgorithmHeader("130102", "Fake GPU", 132, "10.0"), {}, "capability 10.0"),
    ],
)
def test_a_file_of_another_stack_is_not_used(
    fakes: Fakes, tmp_path: Path, header: AlgorithmHeader, variables: dict[str, str], why: str
) -> None:
    path = write_file(tmp_path / "f", {PLAIN: SPLIT}, header)
    answer = fakes.call(
        [call(PLAIN, times=5)],
        preload=[fakes.use, fakes.directory / "libcuda.so.1"],
        PRIMUS_CUBLASLT_FILE=path,
        **variables,
    )
    assert ids(answer) == [[66]]
    assert why in answer["use"]["refused"]
    assert why in answer["stderr"]
    assert (answer["use"]["passed"], answer["use"]["hits"]) == (5, 0)


def test_without_a_file_everything_passes_silently(fakes: Fakes, tmp_path: Path) -> None:
    for variables in ({}, {"PRIMUS_CUBLASLT_FILE": ""}):
        answer = fakes.call([call(PLAIN)], **variables)
        assert (ids(answer), answer["use"]["passed"]) == ([[66]], 1)
        assert answer["stderr"] == ""
    answer = fakes.call([call(PLAIN)], PRIMUS_CUBLASLT_FILE=str(tmp_path / "none"))
    assert "cannot read" in answer["use"]["refused"]
    assert "cannot read" in answer["stderr"]


def mutilated(text: str) -> dict[str, tuple[bytes, bool]]:
    """Damaged files, and whether the entry of PLAIN must still be served."""
    whole = text.encode()
    entry = next(line for line in text.splitlines() if line.startswith("Gemm"))
    number = entry.index("lda=") + 5
    return {
        "whole": (whole, True),
        "torn in a number": (text.replace(entry, entry[:number]).encode(), False),
        "torn before its end": (text.replace(entry, entry[:-2]).encode(), False),
        "empty": (b"", False),
        "no header": (entry.encode(), False),
        "another version": (text.replace("primus-cublaslt 1", "primus-cublaslt 2").encode(), False),
        "NUL bytes": (whole.replace(b"transB", b"tran\0B"), False),
        "binary before": (bytes(range(256)) + b"\n" + whole, True),
        "a long line": (b"x" * 100_000 + b"\n" + whole, True),
        "no newline at all": (b"y" * 1_000_000, False),
        "a huge number": (whole.replace(b"m=512", b"m=99999999999999999999"), False),
        "negative": (whole.replace(b"m=512", b"m=-512"), False),
        "a field twice": (whole.replace(b"m=512", b"m=512 m=512"), False),
        "a field missing": (whole.replace(b"m=512 ", b""), False),
        "a field unknown": (whole.replace(b"m=512", b"m=512 q=1"), False),
        "algorithm out of range": (whole.replace(b"inner_0", b"inner_65536"), False),
        "algorithm cut": (whole.replace(b"_cluster_3", b""), False),
        "a second line torn": (whole + b"Gemm_Cublaslt_id_66_tile", True),
        "Windows": (whole.replace(b"\n", b"\r\n"), False),
        "noise": (random.Random(0).randbytes(20_000), False),
    }


def test_a_damaged_file_costs_only_what_is_damaged(fakes: Fakes, tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_file(path, {PLAIN: FAST})
    for name, (content, served) in mutilated(path.read_text()).items():
        path.write_bytes(content)
        answer = fakes.call([call(PLAIN), call(BIAS)], PRIMUS_CUBLASLT_FILE=str(path))
        use = answer["use"]
        assert [one["status"] for one in answer["answers"][0]] == [0, 0], name
        assert use["hits"] == served, name
        if name != "whole":
            assert use["bad_lines"] or use["refused"], name


def test_experts_are_served_by_the_nearest_number_of_tokens(fakes: Fakes, tmp_path: Path) -> None:
    def forward(tokens: int) -> Problem:
        return Problem(m=128, n=tokens, k=64, transA="T", a_type="bf16_r")

    def weights(tokens: int) -> Problem:
        return Problem(m=128, n=64, k=tokens, transB="T", a_type="bf16_r")

    entries = [
        Entry(render_problem(forward(64)), SPLIT, "n"),
        Entry(render_problem(forward(256)), LOSSY, "n"),
        Entry(render_problem(weights(128)), INNER, "k"),
    ]
    path = tmp_path / "f"
    write_algorithms(path, HEADER, entries)
    sizes = [1, 100, 200, 5000]
    other = Problem(m=96, n=100, k=64, transA="T", a_type="bf16_r")
    calls = [*(forward(n) for n in sizes), weights(77), forward(64), other]
    answer = fakes.call([call(p) for p in calls], PRIMUS_CUBLASLT_FILE=str(path))
    assert ids(answer) == [[67], [67], [68], [68], [70], [67], [66]]
    rows = {row["problem"]: row for row in answer["use"]["problems"]}
    assert rows[render_problem(forward(100))]["nearest"] == render_problem(forward(64))
    assert "nearest" not in rows[render_problem(forward(64))]


def test_calls_that_no_problem_describes_are_left_alone(fakes: Fakes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f", {PLAIN: SPLIT})
    answer = fakes.call(
        [
            call(PLAIN, attributes={"2": 1}),  # alpha and beta on the device
            call(PLAIN, attributes={"15": 100}),  # fewer multiprocessors
            call(PLAIN, preference={"0": ["I", 1]}),  # another search mode
            call(PLAIN, requested=0),
        ],
        PRIMUS_CUBLASLT_FILE=path,
    )
    assert ids(answer) == [[66], [66], [66], []]
    assert answer["answers"][0][3]["status"] == 7
    left = answer["use"]["left_alone"]
    assert left["alpha and beta on the device"] == left["fewer multiprocessors"] == 1
    assert left["search mode"] == 1
    assert answer["use"]["inexpressible"] == 3


def test_threads_share_decisions_and_lose_no_count(fakes: Fakes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f", {PLAIN: SPLIT, BIAS: "default"})
    calls = [call(PLAIN, times=100000), call(BIAS, times=2000), call(SUMS, times=1000)]
    answer = fakes.call(calls, threads=6, PRIMUS_CUBLASLT_FILE=path)
    assert all([one["ids"] for one in thread] == [[67], [66], [66]] for thread in answer["answers"])
    use = answer["use"]
    assert (use["hits"], use["defaults"], use["misses"]) == (600000, 12000, 6000)
    assert answer["check_calls"] == 1


def test_a_forked_process_counts_its_own_calls(fakes: Fakes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f", {PLAIN: SPLIT})
    answer = fakes.call([call(PLAIN, times=4)], fork=True, PRIMUS_CUBLASLT_FILE=path)
    assert (answer["use"]["hits"], answer["child"]["hits"]) == (4, 0)
    assert answer["child"]["entries"] == 1


def test_the_report_at_the_end_is_the_counters(fakes: Fakes, tmp_path: Path) -> None:
    path = write_file(tmp_path / "f", {PLAIN: SPLIT})
    report = tmp_path / "report-%i.json"
    answer = fakes.call(
        [call(PLAIN, times=4)],
        PRIMUS_CUBLASLT_FILE=path,
        PRIMUS_CUBLASLT_REPORT=str(report),
    )
    (written,) = tmp_path.glob("report-*.json")
    assert json.loads(written.read_text()) == answer["use"]


def test_a_preloaded_process_that_multiplies_nothing_is_as_ever(
    fakes: Fakes, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["ls", str(tmp_path)],
        env=fakes.environment(
            LD_PRELOAD=f"{fakes.use}:{fakes.dump}",
            PRIMUS_CUBLASLT_FILE=str(tmp_path / "none"),
            PRIMUS_CUBLASLT_REPORT=str(tmp_path / "report"),
            PRIMUS_CUBLASLT_DUMP=str(tmp_path),
        ),
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["use", "dump", "tuner"])
def test_a_library_shows_only_what_it_must(fakes: Fakes, name: str) -> None:
    wanted = {
        "use": {"cublasLtMatmulAlgoGetHeuristic"},
        "dump": {"cublasLtMatmul"},
        "tuner": set(),
    }[name]
    path = fakes.use.with_name(
        {"use": "libprimus_cublaslt.so"}.get(name, f"libprimus_cublaslt_{name}.so")
    )
    done = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    )
    symbols = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {s for s in symbols if not s.startswith("primus_")} == wanted
    needs = subprocess.run(
        ["readelf", "-d", path], capture_output=True, text=True, check=True
    ).stdout
    assert "libstdc++" not in needs
    assert "libcu" not in needs


def test_the_dump_counts_every_call_with_its_algorithm(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    accumulated = Problem.from_json({**PLAIN.to_json(), "alpha": 0.1, "beta": 1.0})
    calls = [call(p, matmul=True, times=n) for n, p in enumerate((*EVERY, accumulated), 1)]
    calls.append(call(PLAIN, matmul=True, attributes={"15": 100}))
    calls.append(call(PLAIN, matmul=True, attributes={"2": 1}))
    tuned = write_file(tmp_path / "f", {BIAS: FAST})
    directory = tmp_path / "dump"
    directory.mkdir()
    variables = environment(directory)
    variables.pop("LD_PRELOAD")
    variables["PRIMUS_CUBLASLT_FILE"] = tuned
    for _ in range(2):
        fakes.call(calls, preload=[fakes.use, fakes.dump], **variables)
    dump = read(directory)
    single = parse_problem(
        render_problem(accumulated), alpha=float.fromhex("0x1.99999ap-4"), beta=1
    )
    wanted = {
        (parse_problem(render_problem(p)), FAST if p == BIAS else DEFAULT_ALGORITHM): 2 * n
        for n, p in enumerate(EVERY, 1)
    }
    assert dump.calls == Counter(wanted | {(single, DEFAULT_ALGORITHM): 2 * len(EVERY) + 2})
    assert dump.skipped == 4
    examples = " ".join(dump.examples)
    assert "fewer multiprocessors" in examples
    assert "alpha and beta on the device" in examples


def test_a_torn_dump_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no process called cuBLASLt"):
        read(tmp_path)
    (tmp_path / "cublaslt-1.calls").write_text("primus-cublaslt-dump 1\n3 default alpha")
    with pytest.raises(ArtifactError, match="torn"):
        read(tmp_path)
