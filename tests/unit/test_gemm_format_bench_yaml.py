"""hipBLASLt's profile: the same problems as its bench lines, with calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gemm_strategies import PROBLEM
from hypothesis import given
from hypothesis import strategies as st

from primus.errors import ArtifactError
from primus.gemm.formats.bench_flags import PROBLEM as PROBLEM_FLAGS
from primus.gemm.formats.bench_flags import SIZES
from primus.gemm.formats.bench_line import BenchLine, Run
from primus.gemm.formats.bench_yaml import parse_record, read_profile
from primus.gemm.problem import Problem

# Put together after the library's sources of 2025 (the second one: 2026, mask 128).
RECORD = (
    "- { function: matmul, M: 256, N: 512, K: 64, lda: 256, ldb: 64, ldc: 256, ldd: 256, "
    "stride_a: 0, stride_b: 0, stride_c: 0, stride_d: 0, alpha: 1.000000, beta: 0.500000, "
    "transA: N, transB: N, batch_count: 1, scaleA: 1, scaleB: 1, scaleC: 0, scaleD: 0, "
    "swizzleA: false, swizzleB: false, scaleAlpha_vector: false, gradient: false, use_e: false, "
    "bias_vector: false, bias_source: d, a_type: f8_r, b_type: f8_r, c_type: bf16_r, "
    "d_type: bf16_r, scale_type: f32_r, bias_type: f32_r, aux_type: f32_r, "
    "compute_type: c_f32_r, activation_type: none, flush: false, any_stride: true, rotating: 0, "
    "cold_iters: 0, iters: 0, call_count: 12 }"
)
GROUPED = (
    "- { function: matmul, grouped_gemm:  m: 64, n: 8, k: 32, lda: 64, ldb: 32, ldc: 64, ldd: 64, "
    "stride_a: 0, stride_b: 0, stride_c: 0, stride_d: 0, m: 64, n: 5, k: 32, lda: 64, ldb: 32, "
    "ldc: 64, ldd: 64, stride_a: 0, stride_b: 0, stride_c: 0, stride_d: 0, alpha: 1.000000, "
    "beta: 0.000000, transA: N, transB: N, batch_count: 1, scaleA: 0, scaleB: 0, scaleC: 0, "
    "scaleD: 0, swizzleA: false, swizzleB: false, scaleAlpha_vector: false, gradient: false, "
    "use_e: false, bias_vector: true, bias_source: d, a_type: bf16_r, b_type: bf16_r, "
    "c_type: bf16_r, d_type: bf16_r, scale_type: f32_r, bias_type: bf16_r, aux_type: f32_r, "
    "compute_type: c_f32_fast_bf16_r, activation_type: none, flush: true, any_stride: true, "
    "rotating: 512, cold_iters: 2, iters: 10, solution_index: 7, solution_Name: Cijk_Ailk_Bljk, "
    "kernel_name: Cijk_Ailk_Bljk_BBS, call_count: 3 }"
)


def test_what_a_record_says() -> None:
    problem, run, calls = parse_record(RECORD)
    assert calls == 12
    assert run == Run()
    assert problem == Problem(
        m=256,
        n=512,
        k=64,
        beta=0.5,
        a_type="f8_r",
        d_type="bf16_r",
        scaleA="1",
        scaleB="1",
        bias_type="f32_r",
        any_stride=True,
    )


def test_a_grouped_record_is_read_though_it_is_no_yaml() -> None:
    problem, run, calls = parse_record(GROUPED)
    assert (problem.n, [g.n for g in problem.groups], calls) == (8, [5], 3)
    assert (problem.compute_type, problem.bias_source) == ("f32_bf16_r", "d")
    assert run == Run(solution_index=7, flush=True, rotating=512, cold_iters=2, iters=10)


def record(problem: Problem, run: Run, calls: int) -> str:
    """As the library writes it: names and values as in the bench line, but for a few."""

    def sizes(member: object, names: tuple[str, str, str], *, of_e: bool) -> str:
        rename = dict(zip("mnk", names, strict=True))
        return ", ".join(
            f"{rename.get(flag.field, flag.field)}: {getattr(member, flag.field)}"
            for flag in SIZES.values()
            if of_e or flag.field not in ("lde", "stride_e")
        )

    parts = ["function: matmul"]
    if problem.grouped_gemm:
        members = (problem, *problem.groups)
        parts.append(
            "grouped_gemm:  " + ", ".join(sizes(m, ("m", "n", "k"), of_e=True) for m in members)
        )
    else:
        parts.append(sizes(problem, ("M", "N", "K"), of_e=False))
    for flag in PROBLEM_FLAGS.values():
        if flag.field in ("grouped_gemm", "activation_arg1", "activation_arg2"):
            continue
        value = getattr(problem, flag.field)
        if flag.field == "compute_type":
            value = f"c_{value}"
        elif isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, float):
            value = f"{value:.6f}"
        elif value == "":
            value = {"bias_source": "d"}.get(flag.field, "f32_r")
        parts.append(f"{flag.field}: {value}")
    parts += ["flush: false", f"rotating: {run.rotating}", f"solution_index: {run.solution_index}"]
    return "- { " + ", ".join([*parts, f"call_count: {calls}"]) + " }"


EXACT = st.integers(-9, 9).map(lambda eighths: eighths / 8)


@given(PROBLEM, EXACT, EXACT, st.integers(1, 1 << 40))
def test_any_problem_comes_back(problem: Problem, alpha: float, beta: float, calls: int) -> None:
    problem = replace(
        problem,
        alpha=alpha,
        beta=beta,
        alphai=0.0,
        betai=0.0,
        activation_args=(),
        fast_accumulation=False,
    )
    run = Run(solution_index=5, rotating=3)
    found, ran, number = parse_record(record(problem, run, calls))
    assert (ran, number) == (run, calls)
    silent: dict[str, object] = {}
    if not problem.bias_vector:
        silent["bias_source"] = ""
    elif not problem.bias_source:
        silent["bias_source"] = "d"
    if not problem.use_e:
        silent["aux_type"] = ""
    elif not problem.aux_type:
        silent["aux_type"] = "f32_r"
    if not problem.grouped_gemm:
        silent |= {"lde": 0, "stride_e": 0}
    if not problem.bias_type:
        silent["bias_type"] = "f32_r"
    assert found == replace(problem, **silent)


def test_the_problem_is_that_of_the_bench_line() -> None:
    line = (
        "hipblaslt-bench --api_method c -m 256 -n 512 -k 64 --lda 256 --ldb 64 --ldc 256 "
        "--ldd 256  --stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0  --alpha 1.000000 "
        "--beta 0.500000 --transA N --transB N --batch_count 1 --scaleA 1 --scaleB 1  "
        "--a_type f8_r --b_type f8_r --c_type bf16_r --d_type bf16_r --scale_type f32_r "
        "--bias_type f32_r   --compute_type f32_r --algo_method index --solution_index 3 "
        "--activation_type none --any_stride --rotating 0 --cold_iters 0 --iters 0 "
    )
    assert parse_record(RECORD)[0] == BenchLine.parse(line).problem


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("call_count: 12", "call_count: 0", "call_count is 0"),
        (", call_count: 12", "", "call_count is None"),
        ("function: matmul", "function: api", "records 'api', not matmul"),
        ("M: 256, ", "", "lacks m"),
        ("K: 64", "K: -64", "k: not a size"),
        ("K: 64", "K: 0", "k: not a size"),
        ("lda: 256", "lda: many", "lda: not a size"),
        ("a_type: f8_r, ", "", "lacks a_type"),
        ("scaleA: 1", "scaleE: 1", "unknown scaleE"),
        ("use_e: false", "use_e: 3", "use_e is 3"),
        ("beta: 0.500000", "beta: [", "no YAML"),
        (" }", "", "no record"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, why: str) -> None:
    assert old in RECORD
    with pytest.raises(ValueError, match=r".") as caught:
        parse_record(RECORD.replace(old, new))
    assert why in str(caught.value)


@given(st.sampled_from([RECORD, GROUPED]), st.data())
def test_torn_records_and_garbage_are_malformed(text: str, data) -> None:
    cut = data.draw(st.integers(0, len(text) - 1))
    for line in (text[:cut], data.draw(st.text()), "- { " + data.draw(st.text()) + " }"):
        with pytest.raises(ValueError, match=r"."):
            parse_record(line)
    try:
        parse_record(text[:cut] + data.draw(st.text(max_size=3)) + text[cut:])
    except ValueError:
        return


def test_ranks_are_added_up(tmp_path: Path) -> None:
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    paths[0].write_text(f"{RECORD}\n{GROUPED}\n")
    paths[1].write_text(f"{RECORD}\n{RECORD.replace('12 }', '1 }')}\n")
    dump = read_profile(paths)
    plain, grouped = parse_record(RECORD), parse_record(GROUPED)
    assert dump.calls == {(plain[0], plain[1]): 25, (grouped[0], grouped[1]): 3}
    assert (dump.lines, dump.skipped) == (4, 0)
    paths[1].write_text("- { function: matmul }\n")
    with pytest.raises(ArtifactError, match="1 of 3 lines"):
        read_profile(paths)
