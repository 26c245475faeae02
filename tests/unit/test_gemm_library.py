"""A library's log against what torch saw: shared among steps, compared, with what is left over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from primus.errors import TrainingError
from primus.gemm.formats.stream import Dump
from primus.gemm.library import Logged, library_dump
from primus.gemm.problem import Problem
from primus.gemm.record import Recorded
from primus.gemm.watched import WatchedSteps
from primus.watched_steps import keep_logs_of

LARGE = Problem(m=1024, n=1024, k=1024, a_type="bf16_r")
SMALL = Problem(m=16, n=16, k=16, a_type="bf16_r")


def dump(calls: dict[tuple[Problem, str], int]) -> Dump[tuple[Problem, str]]:
    return Dump(Counter(calls), lines=sum(calls.values()))


def test_calls_are_shared_and_the_rest_is_named() -> None:
    calls = {(LARGE, "solution_1"): 4, (LARGE, "solution_2"): 2, (SMALL, ""): 7}
    logged = Logged.of(dump(calls), 2)
    assert logged.calls == {LARGE: 3, SMALL: 3}
    assert logged.outside == {SMALL: 1}
    assert Logged.of(dump(calls), 1).outside == {}


def test_much_outside_the_steps_is_an_error() -> None:
    few = dump({(LARGE, ""): 300, (SMALL, ""): 1})
    assert Logged.of(few, 3).outside == {SMALL: 1}
    with pytest.raises(TrainingError, match=r"25.0% of the FLOPs .* 1 x NN 1024x1024x1024"):
        Logged.of(dump({(LARGE, ""): 4}), 3)


def test_a_log_without_gemms_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"logged no GEMM.*gemm_tuning.shapes: trace"):
        Logged.of(dump({}), 2)


def test_what_only_one_of_them_saw_is_told() -> None:
    biased = Problem(m=64, n=64, k=64, bias_vector=True, bias_type="bf16_r", a_type="bf16_r")
    plain = Problem(m=64, n=64, k=64, a_type="bf16_r")
    logged = Logged.of(dump({(biased, "a"): 4, (LARGE, "a"): 2}), 2)
    recorded = Recorded(Counter({(plain, "forward"): 1, (SMALL, "backward"): 2}))
    assert list(logged.against(recorded)) == [
        "torch saw 1 of 3 GEMMs that the library logged",
        "only in the library's log: 2 GEMMs: 1 x NN 64x64x64 bf16_r; 1 x NN 1024x1024x1024 bf16_r",
        "only seen by torch: 2 GEMMs: 2 x NN 16x16x16 bf16_r",
    ]


def test_problems_of_experts_are_known_from_torch() -> None:
    here = Problem(m=64, n=8, k=64, d_type="bf16_r", a_type="bf16_r", c_type="f32_r")
    there = Problem(m=64, n=8, k=64, a_type="bf16_r")
    logged = Logged.of(dump({(here, "a"): 2, (LARGE, "a"): 2}), 2)
    assert logged.varying(Recorded(varying={there: "n"})) == {here: "n"}


def test_both_libraries_dump_by_environment(tmp_path: Path) -> None:
    environment = library_dump("rocm").environment(tmp_path)
    assert environment["HIPBLASLT_TUNING_OVERRIDE_FILE"] is None
    assert str(tmp_path) in str(environment["HIPBLASLT_LOG_FILE"])
    assert library_dump("cuda").read is not library_dump("rocm").read


def test_logs_of_other_processes_are_put_away(tmp_path: Path) -> None:
    ours = {"hipblaslt_node1_12.log", "hipblaslt_node2_7.log", "cublaslt-7.calls", "steps.json"}
    others = {f"hipblaslt_{name}.log" for name in ("node1_7", "node2_12", "node1_123", "%h_12")}
    for name in ours | others:
        (tmp_path / name).write_text("")
    keep_logs_of(tmp_path, [("node1", 12), ("node2", 7)])
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == ours
    assert {path.name for path in (tmp_path / "others").iterdir()} == others


def test_what_ranks_tell_survives_its_file(tmp_path: Path) -> None:
    recorded = Recorded(
        Counter({(LARGE, "forward"): 2, (SMALL, "backward"): 3}), varying={SMALL: "k"}
    )
    told = WatchedSteps.of(recorded, iterations=2, processes=[("node1", 1)], use=None)
    told.save(tmp_path / "steps.json")
    assert WatchedSteps.load(tmp_path / "steps.json").recorded == recorded
