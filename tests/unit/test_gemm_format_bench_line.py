"""hipBLASLt's bench lines: to a problem and back, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gemm_strategies import PROBLEM
from hypothesis import given
from hypothesis import strategies as st

from primus.gemm.formats.bench_flags import FLAGS, RELEASES
from primus.gemm.formats.bench_line import BenchLine, Run, problem_arguments
from primus.gemm.problem import Group, Problem

COUNT = st.integers(0, 1 << 20)
RUN = st.builds(
    Run,
    api_method=st.sampled_from(["c", "cpp"]),
    algo_method=st.sampled_from(["", "index", "heuristic"]),
    solution_index=st.integers(-1, 1 << 30),
    splitk=COUNT,
    wgm=st.integers(-64, 64),
    flush=st.booleans(),
    rotating=COUNT,
    cold_iters=COUNT,
    iters=COUNT,
)
RELEASE = st.sampled_from(sorted(RELEASES))
LINE = st.builds(
    lambda problem, run, release: BenchLine.of(
        replace(problem, fast_accumulation=False), run, release=release
    ),
    PROBLEM,
    RUN,
    RELEASE,
)

# ROCm issue 5941.
ISSUE = (
    "hipblaslt-bench --api_method c -m 256 -n 256 -k 1 --lda 256 --ldb 1 --ldc 256 --ldd 256  "
    "--stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0  --alpha 1.000000 --beta 0.000000 "
    "--transA N --transB N --batch_count 1 --scaleA 0 --scaleB 0  --a_type f32_r --b_type f32_r "
    "--c_type f32_r --d_type f32_r --scale_type f32_r --bias_type f32_r   --compute_type f32_r "
    "--algo_method index --solution_index 1214 --activation_type none --any_stride --rotating 0 "
    "--cold_iters 0 --iters 0 "
)
# hipBLASLt's page on offline tuning.
PAGE = (
    "hipblaslt-bench --api_method c -m 1024 -n 512 -k 1024 --lda 1024 --ldb 1024 --ldc 1024 "
    "--ldd 1024  --stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0  --alpha 1.000000 "
    "--beta 1.000000 --transA N --transB N --batch_count 1  --a_type f16_r --b_type f16_r "
    "--c_type f16_r --d_type f16_r --scale_type f32_r --bias_type f32_r   --compute_type f32_r "
    "--algo_method index --solution_index 56073"
)
# A log of vLLM, 2026, on a hipBLASLt between two of the releases below; eight-bit integers.
INTEGERS = (
    "hipblaslt-bench --api_method c -m 28672 -n 512 -k 512 --lda 512 --ldb 512 --ldc 28672 "
    "--ldd 28672  --stride_a 14680064 --stride_b 262144 --stride_c 14680064 --stride_d 14680064  "
    "--alpha 1 --beta 0 --transA T --transB N --batch_count 1 --scaleA 2 --scaleB 2  "
    "--a_type i8_r --b_type i8_r --c_type i32_r --d_type bf16_r --scale_type f32_r "
    "--bias_type f32_r   --compute_type i32_r --activation_type none  "
)
# Put together after the sources of the releases named.
OLD = (  # rocm-6.2.2: scales without a value, bare numbers, the epilogue at the end
    "hipblaslt-bench -m 4096 -n 8192 -k 1024 --lda 1024 --ldb 1024 --ldc 4096 --ldd 4096 --lde 0 "
    "--stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0 --stride_e 0 --alpha 1 --beta 0 "
    "--transA T --transB N --batch_count 1 --scaleA --scaleB --scaleD --a_type f8_r "
    "--b_type f8_r --c_type bf16_r --d_type bf16_r --compute_type f32_r --scale_type f32_r "
    "--bias_type bf16_r --activation_type gelu --bias_vector --use_e "
)
NAMED = (  # October 2024: scale modes by name, activation only where there is one
    "hipblaslt-bench --api_method cpp -m 128 -n 256 -k 64 --lda 128 --ldb 64 --ldc 128 --ldd 128 "
    "--lde 128 --stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0 --stride_e 32768 "
    "--alpha 1.000000 --beta 0.500000 --transA N --transB N --batch_count 1 --scaleA v --scaleB v "
    "--scaleC --scaleD --gradient --use_e --bias_vector --bias_source d --a_type bf8_r "
    "--b_type f8_r --c_type f16_r --d_type f16_r --scale_type f32_r --bias_type f32_r --splitk 4 "
    "--wgm 8 --compute_type f32_r --activation_type gelu "
)
GROUPED = (
    "hipblaslt-bench --api_method cpp --grouped_gemm  -m 64 -n 8 -k 32 --lda 64 --ldb 32 --ldc 64 "
    "--ldd 64 --stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0 -m 64 -n 5 -k 32 --lda 64 "
    "--ldb 32 --ldc 64 --ldd 64 --stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0 "
    "--alpha 1.000000 --beta 0.000000 --transA N --transB N --batch_count 1 --scaleA 0 "
    "--scaleB 0  --a_type bf16_r --b_type bf16_r --c_type bf16_r --d_type bf16_r "
    "--scale_type f32_r --bias_type bf16_r   --compute_type f32_r --algo_method index "
    "--solution_index 7 --activation_type none --flush --any_stride --rotating 512 "
    "--cold_iters 2 --iters 10 "
)
NEW = (  # 2026: imaginary parts, batch mode, bias stride
    "hipblaslt-bench --api_method c -m 96 -n 40 -k 16 --lda 16 --ldb 16 --ldc 96 --ldd 96  "
    "--stride_a 1536 --stride_b 640 --stride_c 3840 --stride_d 3840  --alpha 1.000000 "
    "--alphai 0.000000 --beta 0.000000 --betai 0.000000 --transA T --transB N --batch_count 4 "
    "--batch_mode 1 --scaleA 3 --scaleB 3 --swizzleA --bias_vector --bias_source d "
    "--bias_stride 96 --a_type f4_r --b_type f4_r --c_type bf16_r --d_type bf16_r "
    "--scale_type f32_r --bias_type bf16_r   --compute_type f32_r --algo_method index "
    "--solution_index 24641 --activation_type swish --any_stride --rotating 0 --cold_iters 0 "
    "--iters 0 "
)
NO_MODE = INTEGERS.replace("--scaleA 2 --scaleB 2 ", "--scaleA  --scaleB  ")  # rocRoller
REAL = {
    "issue": ISSUE,
    "page": PAGE,
    "integers": INTEGERS,
    "old": OLD,
    "named": NAMED,
    "grouped": GROUPED,
    "new": NEW,
    "no mode": NO_MODE,
}


@pytest.mark.parametrize("text", REAL.values(), ids=REAL)
def test_a_real_line_comes_back_byte_for_byte(text: str) -> None:
    assert BenchLine.parse(text).render() == text


@pytest.mark.parametrize(
    ("text", "release"),
    [(ISSUE, "2025"), (OLD, "2023"), (NAMED, "2024"), (GROUPED, "2025"), (NEW, "2026")],
)
def test_a_release_is_written_as_it_writes(text: str, release: str) -> None:
    line = BenchLine.parse(text)
    assert BenchLine.of(line.problem, line.run, release=release) == line


def test_what_a_line_says() -> None:
    old = BenchLine.parse(OLD)
    assert old.problem == Problem(
        m=4096,
        n=8192,
        k=1024,
        transA="T",
        a_type="f8_r",
        d_type="bf16_r",
        scaleA="1",
        scaleB="1",
        scaleD="1",
        bias_vector=True,
        bias_type="bf16_r",
        activation_type="gelu",
        use_e=True,
    )
    named = BenchLine.parse(NAMED)
    assert (named.problem.scaleA, named.problem.scaleC, named.problem.beta) == ("2", "1", 0.5)
    assert (named.problem.gradient, named.problem.use_e, named.problem.lde) == (True, True, 128)
    assert (named.run.api_method, named.run.splitk, named.run.wgm) == ("cpp", 4, 8)
    grouped = BenchLine.parse(GROUPED)
    member = {"m": 64, "k": 32, "lda": 64, "ldb": 32, "ldc": 64, "ldd": 64}
    assert grouped.problem.groups == (Group(n=5, **member),)
    assert (grouped.problem.n, grouped.problem.flops) == (8, 2 * 64 * 32 * (8 + 5))
    assert (grouped.run.solution_index, grouped.run.rotating, grouped.run.flush) == (7, 512, True)
    new = BenchLine.parse(NEW).problem
    assert (new.batch_mode, new.bias_stride, new.swizzleA, new.scaleB) == (1, 96, True, "3")
    assert BenchLine.parse(NO_MODE).problem.scaleA == "0"


@given(LINE)
def test_any_problem_and_run_come_back_from_the_line_of_any_release(line: BenchLine) -> None:
    text = line.render()
    again = BenchLine.parse(text)
    assert again == line
    assert again.render() == text


@given(PROBLEM)
def test_arguments_state_the_problem_and_nothing_else(problem: Problem) -> None:
    problem = replace(problem, fast_accumulation=False)
    arguments = problem_arguments(problem)
    assert all(argument and " " not in argument for argument in arguments)
    line = BenchLine.parse(" ".join(["hipblaslt-bench", *arguments]))
    assert line.problem == problem
    assert line.run == Run()


def test_arguments_leave_out_what_old_programs_do_not_know() -> None:
    arguments = problem_arguments(Problem(m=8, n=8, k=8))
    assert not {"--alphai", "--batch_mode", "--bias_stride", "--scaleA"} & set(arguments)
    assert problem_arguments(BenchLine.parse(NAMED).problem).count("--bias_vector") == 1


@given(LINE, st.data())
def test_another_order_spelling_or_spacing_comes_back_too(line: BenchLine, data) -> None:
    """What is read is written again as it was, also where no release writes so."""
    texts = line.render().split(" --")
    tail = data.draw(st.permutations(texts[1:])) if not line.problem.grouped_gemm else texts[1:]
    text = " --".join([texts[0], *tail])
    for old, new in data.draw(
        st.lists(
            st.sampled_from(
                [(" --", "  --"), (".000000", ".0"), ("1 ", "01 "), ("0.0", "-0.0"), (" ", "  ")]
            ),
            max_size=2,
        )
    ):
        text = text.replace(old, new)
    try:
        again = BenchLine.parse(text)
    except ValueError:
        return
    assert again.render() == text


@given(LINE, st.data())
def test_a_torn_or_damaged_line_is_malformed_or_means_what_it_says(line: BenchLine, data) -> None:
    text = line.render()
    cut = data.draw(st.integers(0, len(text)))
    rest = data.draw(st.sampled_from(["", text, text[: len(text) // 2], "\0", "é", "--lda 3 "]))
    damaged = text[:cut] + rest
    try:
        again = BenchLine.parse(damaged)
    except ValueError:
        return
    assert again.render() == damaged


@given(st.text() | st.lists(st.sampled_from([*FLAGS, "1", "N", "f32_r", ""])).map(" ".join))
def test_garbage_is_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        BenchLine.parse(text)
    with pytest.raises(ValueError, match=r"."):
        BenchLine.parse("hipblaslt-bench " + text)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("hipblaslt-bench", "rocblas-bench", "does not start with hipblaslt-bench"),
        ("--transB N", "", "lacks --transB"),
        ("--flush", "--flash", "unknown argument '--flash'"),
        ("--iters 10 ", "--iters", "--iters has no value"),
        ("--iters 10", "--iters 10 --iters 10", "--iters stands twice"),
        ("--lda 64", "--lda -64", "--lda: '-64' is not a count"),
        ("--lda 64", "--lda ６４", "--lda: '６４' is not a count"),
        ("--alpha 1.000000", "--alpha nan", "--alpha: 'nan' is not a finite number"),
        ("--transA N", "--transA n", "--transA: 'n' is not N, T or C"),
        ("--a_type bf16_r", "--a_type bf-16", "--a_type: 'bf-16' is not a name"),
        ("--grouped_gemm ", "", "sizes stand twice without --grouped_gemm"),
        ("-n 5 ", "", "a member lacks n"),
        ("-n 8 ", "", "a member lacks n"),
        ("-n 5", "-n 0", "-n: a size is at least 1"),
        ("--ldd 64", "--ldd 0", "--ldd: a size is at least 1"),
        ("--batch_count 1", "--batch_count 0", "sizes of at least 1"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, why: str) -> None:
    assert old in GROUPED
    with pytest.raises(ValueError, match=r".") as caught:
        BenchLine.parse(GROUPED.replace(old, new))
    assert why in str(caught.value)


def test_what_hipblaslt_cannot_compute_has_no_line() -> None:
    with pytest.raises(ValueError, match="fast accumulation"):
        BenchLine.of(Problem(m=8, n=8, k=8, fast_accumulation=True))
    with pytest.raises(ValueError, match="2 activation arguments, not 3"):
        problem_arguments(Problem(m=8, n=8, k=8, activation_args=(1.0, 2.0, 3.0)))
