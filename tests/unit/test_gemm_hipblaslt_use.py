"""hipBLASLt's log of a training: how it is asked for, and what it proves of the override file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_gemm_hipblaslt_files import header, problem, tuned_row

from primus.artifacts.gemm import save_lines
from primus.errors import ArtifactError
from primus.gemm.formats.bench_line import BenchLine, Run
from primus.gemm.formats.stream import Dump
from primus.gemm.hipblaslt.dump import environment, read
from primus.gemm.hipblaslt.use import used
from primus.gemm.problem import Problem
from primus.gemm.tuned import TunedResult


def line(of: Problem, index: int) -> str:
    """What a release of 2025 logs of one call."""
    return BenchLine.of(of, Run(solution_index=index), release="2025").render() + "\n"


def result(tmp_path: Path, *rows: Any) -> TunedResult:
    path = tmp_path / "tuned.jsonl"
    save_lines(path, header(list(rows)), rows)
    return TunedResult.load(path)


def dump_of(*runs: tuple[Problem, dict[str, int]]) -> Dump[tuple[Problem, str]]:
    found: Dump[tuple[Problem, str]] = Dump()
    for of, by_name in runs:
        for name, calls in by_name.items():
            found.calls[of, name] += calls
    return found


# The dump


def test_a_dumped_problem_is_the_one_that_a_trace_finds(tmp_path: Path) -> None:
    line = (
        "hipblaslt-bench --api_method c -m 256 -n 256 -k 1 --lda 256 --ldb 1 --ldc 256 --ldd 256  "
        "--stride_a 0 --stride_b 0 --stride_c 0 --stride_d 0  --alpha 1.000000 --beta 0.000000 "
        "--transA N --transB N --batch_count 1 --scaleA 0 --scaleB 0  --a_type f32_r "
        "--b_type f32_r --c_type f32_r --d_type f32_r --scale_type f32_r --bias_type f32_r   "
        "--compute_type f32_r "
        "--algo_method index --solution_index 1214 --activation_type none --any_stride "
        "--rotating 0 --cold_iters 0 --iters 0 "
    )
    (tmp_path / "hipblaslt_7.log").write_text(line + "\n")
    traced = Problem.from_mm(torch.ones(256, 1), torch.ones(1, 256))
    assert list(read(tmp_path).calls) == [(traced, "solution_1214")]


def test_a_dump_unsets_what_would_silence_or_steer_it(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    assert variables["HIPBLASLT_LOG_MASK"] == "32"
    assert variables["HIPBLASLT_LOG_FILE"] == str(tmp_path / "hipblaslt_%h_%i.log")
    unset = {name for name, value in variables.items() if value is None}
    assert {"HIPBLASLT_LOG_LEVEL", "HIPBLASLT_TUNING_OVERRIDE_FILE"} <= unset
    under = environment(tmp_path, tmp_path / "results.txt")
    assert under["HIPBLASLT_TUNING_OVERRIDE_FILE"] == str(tmp_path / "results.txt")


def test_calls_of_all_ranks_are_counted_per_problem_and_solution(tmp_path: Path) -> None:
    biased = problem(bias_vector=True, bias_type="bf16_r")
    (tmp_path / "hipblaslt_1.log").write_text(line(problem(), 11) * 3 + line(biased, 11))
    (tmp_path / "hipblaslt_2.log").write_text(
        "[0] a warning of somebody else\n" + line(problem(), 12)
    )
    (tmp_path / "other.txt").write_text(line(problem(k=512), 1))
    assert read(tmp_path).calls == {
        (problem(), "solution_11"): 3,
        (problem(), "solution_12"): 1,
        (biased, "solution_11"): 1,
    }


def test_the_solution_is_no_part_of_the_problem(tmp_path: Path) -> None:
    (tmp_path / "hipblaslt_1.log").write_text("".join(line(problem(), i) for i in range(50)))
    assert len({found for found, _ in read(tmp_path).calls}) == 1


def test_releases_that_log_no_index(tmp_path: Path) -> None:
    old = BenchLine.of(problem(), release="2024").render()
    (tmp_path / "hipblaslt_1.log").write_text(old + "\n")
    assert read(tmp_path).calls == {(problem(), ""): 1}


def test_a_log_of_which_much_is_damaged_is_refused(tmp_path: Path) -> None:
    torn = line(problem(), 11)[:100] + "\n"
    (tmp_path / "hipblaslt_1.log").write_text(line(problem(), 11) + torn * 2 + line(problem(), 1))
    with pytest.raises(ArtifactError, match="malformed"):
        read(tmp_path)


# What was used


def test_hits_misses_and_rejections(tmp_path: Path) -> None:
    tuned = result(
        tmp_path,
        tuned_row(1),
        tuned_row(2, k=256),
        tuned_row(None, k=512),
        tuned_row(3, k=640),
        tuned_row(4, k=768),
    )
    use = used(
        tuned,
        dump_of(
            (problem(), {"solution_1": 5}),
            (problem(k=256), {"solution_2": 2, "solution_99": 3}),
            (problem(k=512), {"solution_50": 7}),
            (problem(k=768), {"": 1}),
            (problem(k=1024), {"solution_60": 11}),
        ),
    )
    assert (use.hits, use.defaults, use.misses, use.rejections) == (7, 7, 11, 4)
    by_text: dict[str, list[dict[str, Any]]] = {}
    for entry in use.problems:
        by_text.setdefault(entry["problem"], []).append(entry)
    assert by_text[str(problem(k=640))][0]["why"] == "never called"
    (hit, rejection) = by_text[str(problem(k=256))]
    assert (hit["use"], hit["candidate"], hit["calls"]) == ("hit", "solution_2", 2)
    assert rejection["why"] == "hipBLASLt ran solution_99 instead"
    assert "does not name" in by_text[str(problem(k=768))][0]["why"]


def test_problems_that_share_a_key_are_served_by_the_one_that_was_kept(tmp_path: Path) -> None:
    often, seldom = problem(), problem(bias_vector=True)
    tuned = result(tmp_path, tuned_row(1, calls=10), tuned_row(2, us=5.0, bias_vector=True))
    use = used(tuned, dump_of((often, {"solution_1": 10}), (seldom, {"solution_1": 1})))
    assert (use.hits, use.rejections) == (11, 0)
    assert all("cannot tell it from" in entry["why"] for entry in use.problems)


def test_a_file_that_the_library_ignored_shows(tmp_path: Path) -> None:
    tuned = result(tmp_path, tuned_row(1), tuned_row(2, k=256))
    use = used(tuned, dump_of((problem(), {"solution_9": 4}), (problem(k=256), {"solution_9": 4})))
    assert (use.hits, use.rejections) == (0, 8)


def test_an_unknown_problem_that_the_key_serves_is_a_hit(tmp_path: Path) -> None:
    tuned = result(tmp_path, tuned_row(1))
    use = used(tuned, dump_of((problem(ldd=128), {"solution_1": 4})))
    assert use.hits == 4
    assert "cannot tell it from" in use.problems[0]["why"]


def test_a_log_without_a_call_proves_nothing(tmp_path: Path) -> None:
    use = used(result(tmp_path, tuned_row(1)), dump_of())
    assert (use.hits, use.problems[0]["use"]) == (0, "unused")
    assert use.problems[0]["why"] == "hipBLASLt logged no call at all: nothing is known"
