"""The backend over a stand-in for hipblaslt-bench: what it asks, and what becomes of faults."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hipblaslt_machine import (
    DEVICE,
    GIT_VERSION,
    UNITS,
    calls,
    install,
    problem,
    rocminfo_text,
    solutions,
    write_plan,
)

from primus.errors import UnavailableError
from primus.gemm.backends import hipblaslt as backend_module
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec, ToolFailure
from primus.gemm.backends.hipblaslt import HipblasltBackend
from primus.gemm.hipblaslt import bench as bench_module
from primus.gemm.hipblaslt.results_file import Entry
from primus.gemm.hipblaslt.tool import run_tool

SPEC = BackendSpec(name="hipblaslt", workspace_mib=64)
PLAIN = solutions(s11=10.0, s12=8.0, s13=9.0, s14=30.0)
Machine = Callable[..., HipblasltBackend]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A backend on a machine with planted times and faults."""

    def make(plan: dict[str, Any], gpus: int = 2) -> HipblasltBackend:
        for name, value in install(tmp_path / "rocm", plan, gpus=gpus).items():
            monkeypatch.setenv(name, value)
        return HipblasltBackend(SPEC)

    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "HIPBLASLT_BENCH"):
        monkeypatch.delenv(name, raising=False)
    return make


def faulty(fault: str, index: str = "12", where: str = "fault") -> dict[str, Any]:
    """The plain plan with a fault in one solution."""
    return {"solutions": PLAIN["solutions"] | {index: {"us": 8.0, where: fault}}}


# What is there


def test_what_is_missing_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(PLAIN).unavailable() is None
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    assert HipblasltBackend(SPEC).unavailable() == "HIP_VISIBLE_DEVICES hides every GPU"
    Path(os.environ["ROCM_PATH"], "rocminfo.txt").write_text(rocminfo_text(0))
    assert "no AMD GPU" in str(HipblasltBackend(SPEC).unavailable())
    monkeypatch.setenv("HIPBLASLT_BENCH", "/nowhere/hipblaslt-bench")
    with pytest.raises(UnavailableError, match="no hipblaslt-bench at HIPBLASLT_BENCH"):
        load_backend(SPEC)


def test_the_stack_names_all_that_a_time_depends_on(machine: Machine) -> None:
    stack = machine(PLAIN).stack()
    assert (stack.device, stack.units, stack.threads) == (DEVICE, UNITS, 0)
    assert stack.libraries == {
        "hipblaslt": "100200",
        "hipblaslt_git": GIT_VERSION,
        "rocm": "unknown",
    }
    assert stack.workspace == 64 << 20


def test_a_tool_of_another_build_than_training_loads_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = machine(PLAIN)
    monkeypatch.setattr(backend_module, "tool_version", lambda: ("100200", "fa9cdd18"))
    with pytest.raises(UnavailableError, match=f"fa9cdd18, training loads {GIT_VERSION}"):
        backend.stack()


def test_each_process_has_a_gpu_of_its_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine(PLAIN, gpus=4).devices() == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    backend = HipblasltBackend(SPEC)
    assert backend.devices() == 2
    found = [backend.worker_environment(number) for number in range(3)]
    assert [e["HIP_VISIBLE_DEVICES"] for e in found] == ["3", "1", "3"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["3", "1", "3"]


# What is asked


@pytest.mark.parametrize("release", ["2025", "2026"])
def test_the_fastest_of_a_survey_and_the_default(machine: Machine, release: str) -> None:
    backend = machine(PLAIN | {"release": release})
    assert backend.candidates(problem()) == ("default", "solution_12", "solution_13")
    assert backend.screen(problem(), 3) == {
        "default": [10.0, 10.0],
        "solution_12": [8.0, 8.0],
        "solution_13": [9.0, 9.0],
    }
    details = backend.details(problem())
    assert details["default_index"] == 11
    assert details["solutions"] == {"solution_12": {"place": 1}, "solution_13": {"place": 2}}
    entry = Entry.from_json(details["entry"])
    assert (entry.solution_index, entry.headed) == (12, release == "2026")
    assert entry.columns["gcnArchName"] == DEVICE


def test_a_release_without_an_override_file_is_refused(machine: Machine) -> None:
    with pytest.raises(RuntimeError, match="knows no override file"):
        machine(PLAIN | {"release": "2024"}).candidates(problem())


def test_flags_without_a_value_reach_the_tool(machine: Machine, tmp_path: Path) -> None:
    backend = machine(PLAIN | {"bias_us": 5.0})
    biased = problem(bias_vector=True, bias_type="bf16_r", gradient=True, bias_source="b")
    screened = backend.screen(biased, 3)
    assert screened["default"] == [15.0, 15.0]
    for call in calls(tmp_path / "rocm"):
        assert {"--bias_vector", "--gradient"} <= set(call["argv"])
        assert call["argv"][call["argv"].index("--bias_source") + 1] == "b"
    assert backend.screen(problem(), 3)["default"] == [10.0, 10.0]


def test_the_same_conditions_in_every_run_and_no_file_shared(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNING_OVERRIDE_FILE", "TUNING_FILE", "TUNING_MODE", "LOG_MASK", "LOG_FILE"):
        monkeypatch.setenv(f"HIPBLASLT_{name}", "x")
    backend = machine(PLAIN)
    backend.screen(problem(), 3)
    backend.screen(problem(k=256), 3)
    made = calls(tmp_path / "rocm")
    surveys = [call for call in made if "--skip_slow_solution_ratio" in call["argv"]]
    assert len(surveys) == 2
    for call in made:
        argv = call["argv"]
        assert argv[argv.index("--rotating") + 1] == "512"
        assert argv[argv.index("--workspace") + 1] == str(64 << 20)
        assert {"--flush", "--use_gpu_timer"} <= set(argv)
        # With the tuning file set, `--algo_method index` would mean all solutions.
        wanted = {"HIPBLASLT_TUNING_FILE"} if call in surveys else set()
        assert {name for name in call["env"] if name.startswith("HIPBLASLT")} == wanted
    files = [call["env"]["HIPBLASLT_TUNING_FILE"] for call in surveys]
    assert len(set(files)) == 2
    assert not any(Path(file).exists() for file in files)


def test_the_number_of_calls_follows_their_length(machine: Machine, tmp_path: Path) -> None:
    backend = machine(solutions(s11=20_000.0, s12=10_000.0))
    backend.screen(problem(), 3)
    counts = [
        (call["argv"][call["argv"].index("--iters") + 1]) for call in calls(tmp_path / "rocm")
    ]
    assert counts == ["20", "3", "5"]  # the default's first run, the survey, the rival alone


def test_samples_of_one_round_are_neighbours_and_take_turns(
    machine: Machine, tmp_path: Path
) -> None:
    backend = machine(PLAIN)
    names = backend.candidates(problem())
    begin = len(calls(tmp_path / "rocm"))
    samples = backend.interleave(problem(), names, 3)
    assert samples == {"default": [10.0] * 3, "solution_12": [8.0] * 3, "solution_13": [9.0] * 3}
    asked = [
        call["argv"][call["argv"].index("--solution_index") + 1]
        if "--solution_index" in call["argv"]
        else "default"
        for call in calls(tmp_path / "rocm")[begin:]
    ]
    assert asked == [*("default", "12", "13"), *("12", "13", "default"), *("13", "default", "12")]


def test_a_tool_that_starts_slowly_is_asked_in_fewer_rounds(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = machine(PLAIN)
    backend.candidates(problem())
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(backend_module.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(backend, "measure", lambda *_: 1.0)
    samples = backend.interleave(problem(), ["default", "solution_12"], 9)
    assert {len(s) for s in samples.values()} == {3}


def test_the_peak_is_what_the_library_reaches_by_itself(machine: Machine, tmp_path: Path) -> None:
    assert machine(solutions(s11=2000.0)).peak("bf16_r") == pytest.approx(2 * 8192**3 / 2e9)
    (call,) = calls(tmp_path / "rocm")
    assert call["argv"][call["argv"].index("--a_type") + 1] == "bf16_r"


def test_grouped_gemms_keep_the_default(machine: Machine, tmp_path: Path) -> None:
    backend = machine(PLAIN)
    assert backend.candidates(problem(grouped_gemm=True)) == ()
    assert "grouped" in backend.why_no_candidates(problem(grouped_gemm=True))
    assert calls(tmp_path / "rocm") == []


# Numerics


def test_errors_are_compared_with_the_defaults(machine: Machine) -> None:
    plan = solutions(s11=10.0, s12=8.0, s13=9.0)
    for index, error in (("11", 0.01), ("12", 0.012), ("13", 0.5)):
        plan["solutions"][index]["norm_error"] = error
    backend = machine(plan)
    backend.candidates(problem())
    assert backend.numerics(problem(), "solution_12").kind == "rounding"
    assert backend.numerics(problem(), "solution_13").kind == "lossy"


def test_errors_below_the_rounding_of_the_result_are_equal(machine: Machine) -> None:
    plan = solutions(s11=10.0, s12=8.0)
    plan["solutions"]["11"]["norm_error"] = 0.0
    plan["solutions"]["12"]["norm_error"] = 1e-4
    backend = machine(plan)
    backend.candidates(problem())
    found = backend.numerics(problem(), "solution_12")
    assert (found.kind, found.error_ratio) == ("rounding", 1.0)


@pytest.mark.parametrize(
    ("fields", "smaller"),
    [
        ({"m": 4096, "n": 128_256, "k": 4096}, {"n": 29_696}),
        ({"m": 4096, "n": 300, "k": 1_000_000}, {"n": 256}),
        ({"m": 2048, "n": 2048, "k": 2048, "batch_count": 640}, {"batch_count": 58}),
        ({"m": 2048, "n": 2048, "k": 2048}, {}),
    ],
)
def test_what_a_cpu_computes_too_slowly_is_checked_smaller(
    machine: Machine, tmp_path: Path, fields: dict[str, int], smaller: dict[str, int]
) -> None:
    from primus.gemm.problem import Problem

    backend = machine(PLAIN)
    large = Problem(**fields, a_type="bf16_r")
    backend.candidates(large)
    backend.numerics(large, "solution_12")
    (first, _) = [call["argv"] for call in calls(tmp_path / "rocm") if "--verify" in call["argv"]]
    for name, flag in (("m", "-m"), ("n", "-n"), ("k", "-k"), ("batch_count", "--batch_count")):
        wanted = (fields | smaller).get(name, 1)
        assert first[first.index(flag) + 1] == str(wanted)


# Faults


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", "the tool printed 0 times: No Solution Found!!"),
        ("ignore", "the tool ran solution 11, asked for was 12"),
        ("crash", "hipblaslt-bench ended with signal 11"),
        ("garbage", "no time that can be read"),
        ("truncate", "no time that can be read"),
        ("nothing", "the tool printed 0 times"),
        ("hang", "hipblaslt-bench exceeded its time limit"),
    ],
)
def test_a_solution_that_misbehaves_alone_is_told_and_the_others_go_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fault: str, error: str
) -> None:
    backend = machine(faulty(fault))
    backend.candidates(problem())
    if fault == "hang":
        monkeypatch.setattr(bench_module, "SAMPLE_SECONDS", 0.5)
    screened = backend.screen(problem(), 3)
    assert error in str(screened["solution_12"])
    assert screened["solution_13"] == [9.0, 9.0]


@pytest.mark.parametrize("fault", ["crash", "hang", "garbage", "truncate", "nothing"])
def test_a_survey_that_breaks_off_counts_as_far_as_it_came(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(bench_module, "SURVEY_SECONDS", 1.0 if fault == "hang" else 60.0)
    backend = machine(faulty(fault, index="13", where="survey_fault"))
    assert backend.candidates(problem()) == ("default", "solution_12")
    details = backend.details(problem())
    assert details["incomplete"]
    entry = Entry.from_json(details["entry"])
    assert entry.names[-3:] == ("solution_index", "gcnArchName", "CUs")
    assert entry.values[-3:] == ("11", DEVICE, str(UNITS))


@pytest.mark.parametrize(
    ("fault", "kind"), [("crash", ToolFailure), ("refuse", RuntimeError), ("garbage", RuntimeError)]
)
def test_a_default_that_cannot_run_fails_the_problem(
    machine: Machine, fault: str, kind: type[RuntimeError]
) -> None:
    backend = machine(faulty(fault, index="11"))
    with pytest.raises(RuntimeError) as caught:
        backend.candidates(problem())
    assert type(caught.value) is kind


def test_a_crash_while_checking_a_rival_is_the_rivals(machine: Machine, tmp_path: Path) -> None:
    backend = machine(PLAIN)
    backend.candidates(problem())
    write_plan(tmp_path / "rocm", faulty("crash"))
    with pytest.raises(RuntimeError, match="signal 11") as caught:
        backend.numerics(problem(), "solution_12")
    assert type(caught.value) is RuntimeError


def test_a_tool_that_times_another_problem_is_found_out(machine: Machine, tmp_path: Path) -> None:
    backend = machine(PLAIN)
    tool = tmp_path / "rocm" / "bin" / "hipblaslt-bench"
    drops = "sys.argv = [a for a in sys.argv if a != '--bias_vector']\nif __name__"
    tool.write_text(tool.read_text().replace("if __name__", drops))
    backend.candidates(problem())
    with pytest.raises(RuntimeError, match="ran bias_vector = 0, asked for was 1"):
        backend.candidates(problem(bias_vector=True))


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    wrapper.chmod(0o755)
    run = run_tool(wrapper, [], seconds=0.5)
    assert run.failure == "hipblaslt-bench exceeded its time limit"
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the wrapper's child lives on"
        time.sleep(0.01)


def test_a_tool_that_is_no_program_is_told(machine: Machine, tmp_path: Path) -> None:
    backend = machine(PLAIN)
    tool = tmp_path / "rocm" / "bin" / "hipblaslt-bench"
    tool.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(RuntimeError, match="Exec format error"):
        backend.candidates(problem())
    with pytest.raises(RuntimeError, match="cannot start"):
        run_tool(tool, [], seconds=1)
