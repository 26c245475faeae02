"""hipblaslt-bench's output: read by names, whatever else stands between, wherever it breaks off."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.gemm.hipblaslt.output import parse_output

NAMES_2024 = (
    "transA,transB,grouped_gemm,batch_count,m,n,k,alpha,lda,stride_a,beta,ldb,stride_b,ldc,"
    "stride_c,ldd,stride_d,a_type,b_type,c_type,d_type,compute_type,scaleA,scaleB,scaleC,scaleD,"
    "amaxD,activation_type,bias_vector,bias_type,hipblaslt-Gflops,hipblaslt-GB/s,us"
)
VALUES_2024 = (
    "T,N,0,1,64,32,16,1,16,1024,0,16,512,64,2048,64,2048,bf16_r,bf16_r,bf16_r,bf16_r,f32_r,"
    "0,0,0,0,0,none,0,bf16_r,{gflops},17.5,{us}"
)
NAMES_2026 = NAMES_2024.replace("amaxD,", "amaxD,swizzle_a,swizzle_b,").replace(
    "bias_type,", "bias_type,aux_type,rotating_buffer,flush,use_gpu_timer,"
)
VALUES_2026 = VALUES_2024.replace("0,none,0,bf16_r,", "0,0,0,none,0,bf16_r,bf16_r,512,1,0,")
HEAD = """\
Initialize tuning file.
HIPBLASLT_TUNING_FILE is the correct setting.
hipBLASLt version: 100200
hipBLASLt git version: de5c1aebb6-dirty
Query device success: there are 1 devices. (Target device ID is 0)
Device ID 0 : AMD Instinct MI350X gfx950:sramecc+:xnack-
with 270.6 GB memory, max. SCLK 2200 MHz, max. MCLK 1900 MHz, compute capability 9.5

Rotating buffer 512 MiB. Needed Size: 19 MiB. Needed block count: 26 (Capped to max iters: 50)
Is supported 3 / Total solutions: 3
"""


def row(
    place: int, us: str, index: int, *, names: str = NAMES_2026, values: str = VALUES_2026
) -> str:
    """One solution as the tool prints it under --print_kernel_info."""
    return (
        f"[{place}]:{names}\n    {values.format(us=us, gflops='1638.4')}\n"
        f"    --Solution index: {index}\n"
        f"    --Solution name:  Cijk_MT{index}\n    --kernel name:    Cijk_kernel_MT{index}\n"
    )


def survey(**how: str) -> str:
    """Three solutions of which one is given up, and the winner again."""
    return (
        HEAD
        + row(0, "40.5", 303082, **how)
        + "Skip solution: 1 (best warm-up = 4.1e+01 us , warm-up = 9e+01 us, skip ratio = 0.7)\n"
        + row(2, "3.9e+01", 24641, **how)
        + "Winner: \n"
        + row(2, "3.9e+01", 24641, **how)
    )


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("names", "values"), [(NAMES_2024, VALUES_2024), (NAMES_2026, VALUES_2026)]
)
def test_a_survey_of_either_release(names: str, values: str) -> None:
    found = parse_output(lines(survey(names=names, values=values)))
    assert (found.version, found.git_version) == ("100200", "de5c1aebb6-dirty")
    assert found.device == "gfx950:sramecc+:xnack-"
    assert [(r.place, r.us, r.solution_index) for r in found.rows] == [
        (0, 40.5, 303082),
        (2, 39.0, 24641),
    ]
    assert found.winner is not None
    assert (found.winner.solution_index, found.winner.kernel_name) == (24641, "Cijk_kernel_MT24641")
    assert list(found.rows[0].columns) == names.split(",")
    assert not found.malformed


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_columns_and_unknown_ones_do_not_matter(source: random.Random) -> None:
    pairs = list(
        zip(NAMES_2026.split(","), VALUES_2026.format(us="7", gflops="2").split(","), strict=True)
    )
    pairs.append(("median_us", "6.5"))
    source.shuffle(pairs)
    text = row(0, "", 5, names=",".join(n for n, _ in pairs), values=",".join(v for _, v in pairs))
    (found,) = parse_output(lines(text)).rows
    assert (found.us, found.columns["median_us"], found.columns["hipblaslt-Gflops"]) == (
        7.0,
        "6.5",
        "2",
    )


def test_other_lines_may_come_between_names_and_values() -> None:
    noisy = survey().replace("us\n    T", "us\nwarning: clocks, of the GPU, vary\n    T")
    assert "vary" in noisy
    assert parse_output(lines(noisy)).rows == parse_output(lines(survey())).rows


@pytest.mark.parametrize("spelling", ["solution_index", "soulution_index"])
def test_the_index_may_stand_in_a_column_alone(spelling: str) -> None:
    text = row(0, "5", 77, names=NAMES_2026 + f",{spelling}", values=VALUES_2026 + ",77")
    text = text[: text.index("    --Solution")]
    assert parse_output(lines(text)).rows[0].solution_index == 77


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (row(0, "nan", 5), "is no time"),
        (row(0, "-1", 5), "is no time"),
        (row(0, "0", 5), "is no time"),
        (row(0, "fast", 5), "could not convert"),
        (row(0, "5", 5, values=VALUES_2026 + ",1"), "39 columns, 40 values"),
        (row(0, "5", 5, names=NAMES_2026.replace("ldb", "lda")), "stands twice"),
        (
            row(0, "5", 5, names=NAMES_2026 + ",solution_index", values=VALUES_2026 + ",6"),
            "several solutions: [5, 6]",
        ),
        (f"[0]:{NAMES_2026}\n", "0 values"),
    ],
)
def test_a_bad_row_is_told_and_the_next_one_counts(broken: str, why: str) -> None:
    found = parse_output(lines(HEAD + broken + row(1, "8", 9)))
    assert [r.solution_index for r in found.rows] == [9]
    assert len(found.malformed) == 1
    assert why in found.malformed[0]


@given(st.integers(0, len(survey())))
def test_cut_off_anywhere_it_never_reads_half_a_number(end: int) -> None:
    whole = parse_output(lines(survey())).rows
    cut = parse_output(lines(survey()[:end])).rows
    for found in cut:
        assert found.us in {r.us for r in whole}
        assert found.solution_index in {None, *(r.solution_index for r in whole)}


@given(st.lists(st.text() | st.sampled_from(lines(survey()))))
def test_garbage_is_no_error(text: list[str]) -> None:
    for found in parse_output(text).rows:
        assert found.us > 0
