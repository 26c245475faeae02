"""Whole training steps in turns: who is at work when, what is chosen, and what training then does.

The contestants here do nothing but write down when they begin and end a step; a real one trains in
tests/pipeline.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_tiny import tiny

from primus import tune_steps
from primus.artifacts.gemm import TunedHeader, TunedRow, load_shapes, load_tuned, save_lines
from primus.artifacts.steps import TUNED, TUNED_PLAIN, UNTUNED, Contestant, Ratio
from primus.config.frozen import StageSettings
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec
from primus.gemm.problem import Problem
from primus.gemm.shapes import write_shapes
from primus.launch import platform_environment
from primus.step_race import WARM_UP, Entry, RaceError, Times, race
from primus.step_turns import Turns, _Over, step_clock
from primus.tune_steps import whole_steps

SOON = 60.0

CONTESTANT = """
import json, os, sys
name, log, fault = sys.argv[1:]
def write(text):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (name + text).encode())
    os.close(descriptor)
def answer(content):
    print(json.dumps(content), flush=True)
write(f" pid {os.getpid()}\\n")
answer({"ready": True})
for number, _ in enumerate(sys.stdin):
    write(" begins\\n")
    if fault == "dies" and number == 5:
        print("out of\\n memory \\n", file=sys.stderr)
        raise SystemExit(3)
    if fault == "hangs" and number == 5:
        import time
        time.sleep(600)
    write(" ends\\n")
    answer({"us": 1000.0 * (number + 1), "served": int(os.environ["SERVED"])})
"""


def entries(path: Path, names: str, **faults: str) -> dict[str, Entry]:
    script = path / "contestant.py"
    script.write_text(CONTESTANT)
    return {
        name: Entry(
            [sys.executable, str(script), name, str(path / "log"), faults.get(name, "")],
            {"SERVED": str(ord(name))},
        )
        for name in names
    }


def test_contestants_take_turns_step_by_step(tmp_path) -> None:
    found = race(entries(tmp_path, "abc"), runs=2, rounds=3, deadline=time.monotonic() + SOON)
    lines = (tmp_path / "log").read_text().splitlines()
    steps = [line for line in lines if " pid " not in line]
    # Each step ends before the next begins, whoever does it.
    assert steps[::2] == [line.replace("ends", "begins") for line in steps[1::2]]
    order = "".join(line[0] for line in steps[::2])
    assert order == "".join(name * WARM_UP for name in "abc") + "abcbcacab" * 2
    pids = {line.split()[2] for line in lines if " pid " in line}
    assert len(pids) == 3
    first = 1000.0 * (WARM_UP + 1)
    samples = [[first + 1000 * (run * 3 + n) for n in range(3)] for run in range(2)]
    assert {name: times.samples for name, times in found.items()} == dict.fromkeys("abc", samples)
    assert {name: times.served for name, times in found.items()} == {n: ord(n) for n in "abc"}
    assert not [pid for pid in pids if psutil.pid_exists(int(pid))]


@pytest.mark.parametrize(
    ("fault", "seconds", "message"),
    [
        ("dies", SOON, "the steps of 'b' ended with status 3: memory"),
        ("hangs", 1.0, "the budget ended before all steps were timed"),
    ],
)
def test_one_that_dies_or_hangs_ends_them_all(tmp_path, fault, seconds, message) -> None:
    faulty = entries(tmp_path, "ab", b=fault)
    with pytest.raises(RaceError) as caught:
        race(faulty, runs=2, rounds=3, deadline=time.monotonic() + seconds)
    assert str(caught.value) == message
    lines = (tmp_path / "log").read_text().splitlines()
    assert not [line for line in lines if " pid " in line and psutil.pid_exists(int(line[6:]))]


def test_a_turn_is_what_lies_between_two_entries() -> None:
    now = [0.0]
    served = [0]
    waits: list[float] = []
    answers = io.StringIO()
    turns = Turns(
        answers,
        io.StringIO("\n\n"),
        clock=lambda: now[0],
        served=lambda: served[0],
        wait=lambda: waits.append(now[0]),
    )
    now[0] = 5.0  # building the model is no part of a step
    for seconds, products in ((0.5, 51), (0.25, 50)):
        with turns.begin():
            now[0] += seconds / 2
        served[0] += products
        now[0] += seconds / 2  # the optimizer's step comes after the context
    with pytest.raises(_Over), turns.begin():
        pytest.fail("a step without a turn")
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"ready": True},
        {"us": 500_000.0, "served": 51},
        {"us": 250_000.0, "served": 50},
    ]
    assert waits == [5.5, 5.75]


def test_the_clock_of_one_thread_is_the_processor_s() -> None:
    assert step_clock(1, "cpu") is time.process_time
    assert step_clock(2, "cpu") is step_clock(1, "cuda") is time.perf_counter


def settings(**changes: Any) -> StageSettings:
    tuning = {"step_rounds": 3} | changes.pop("gemm_tuning", {})
    values = {"platform": "cpu", "threads_per_rank": 1, "gemm_backend": "cpu", "env": {}}
    return StageSettings.of("tune", values | {"gemm_tuning": tuning} | changes)


def files(path: Path, source: Any = "record", stopped: Any = "complete", **model: Any):
    problem = Problem(m=4, n=4, k=4)
    identity = tiny("shapes").identity | model
    write_shapes(path / "shapes.jsonl", {(problem, "forward"): 1}, source=source, model=identity)
    row = TunedRow(
        problem=problem.to_json(),
        text=str(problem),
        calls=1,
        phases={"forward": 1},
        flops=problem.flops,
        default_us=1.0,
        candidate="default",
        tuned_us=1.0,
        gain=0.0,
        numerics="exact",
        reason="",
        others={},
    )
    header = TunedHeader(
        backend="cpu",
        stack={},
        settings={"min_gain": 0.05},
        shapes_sha256="",
        peak_tflops={},
        coverage=1.0,
        problems=1,
        timed=1,
        winners=0,
        failed=0,
        default_us=1.0,
        tuned_us=1.0,
        stopped=stopped,
    )
    save_lines(path / "tuned.jsonl", header, [row])
    return path / "shapes.jsonl", path / "tuned.jsonl"


def planted(**samples: list[list[float]]) -> dict[str, Times]:
    names = {"default": UNTUNED, "tuned": TUNED, "plain": TUNED_PLAIN}
    return {names[name]: Times(runs, served=51) for name, runs in samples.items()}


def after(path: Path, monkeypatch: pytest.MonkeyPatch, found: Any, **changes: Any) -> TunedHeader:
    """The header that whole steps with these times leave."""
    shapes, tuned = files(path)
    asked: dict[str, Entry] = {}

    def fake(entries: dict[str, Entry], **how: Any) -> dict[str, Times]:
        asked.update(entries)
        assert (how["runs"], how["rounds"]) == (2, 3)
        if isinstance(found, Exception):
            raise found
        return {name: found[name] for name in entries}

    monkeypatch.setattr(tune_steps, "race", fake)
    rows = load_tuned(tuned)[1]
    whole_steps(settings(**changes), shapes, tuned, deadline=time.monotonic() + SOON)
    header, rows_after = load_tuned(tuned)
    assert rows_after == rows
    return header


SLOWER = [[100.0, 101.0, 99.0], [100.0, 102.0, 99.0]]
FASTER = [[90.0, 91.0, 89.0], [90.0, 91.0, 89.0]]
ONCE = [[90.0, 91.0, 89.0], [99.0, 101.0, 98.0]]


@pytest.mark.parametrize(
    ("plain", "candidate", "reason"),
    [
        (FASTER, "plain_malloc", "faster by at least 10.0% in both runs"),
        (SLOWER, "default", "the best other, plain_malloc, gains 0.0%, not 5.0%"),
        (ONCE, "default", "plain_malloc was not confirmed: 10.0%, then 1.0%"),
    ],
)
def test_the_environment_is_chosen_like_a_kernel(
    tmp_path, monkeypatch, plain, candidate, reason
) -> None:
    found = planted(default=SLOWER, tuned=SLOWER, plain=plain)
    header = after(tmp_path, monkeypatch, found)
    assert header.process is not None
    assert header.steps is not None
    assert (header.process.candidate, header.process.reason) == (candidate, reason)
    assert list(header.steps.contestants) == [UNTUNED, TUNED, TUNED_PLAIN]
    assert header.steps.contestants[TUNED_PLAIN].samples == plain
    assert header.steps.contestants[TUNED].served == 51
    activated = load_backend(BackendSpec(name="cpu")).activate(tmp_path / "tuned.jsonl")
    ranks = platform_environment("cpu") | dict(activated)
    assert bool(ranks["GLIBC_TUNABLES"]) is (candidate == "default")


def test_a_result_without_steps_changes_no_environment(tmp_path) -> None:
    _, tuned = files(tmp_path)
    assert not load_backend(BackendSpec(name="cpu")).activate(tuned)


def test_the_user_s_own_variable_leaves_nothing_to_choose(tmp_path, monkeypatch) -> None:
    found = planted(default=SLOWER, tuned=FASTER)
    own = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2", "OTHER": "x"}
    header = after(tmp_path, monkeypatch, found, env=own)
    assert header.process is not None
    assert header.process.candidate == "default"
    assert header.process.reason == "env sets GLIBC_TUNABLES"
    assert not header.process.environment


def test_every_contestant_starts_as_a_rank_would(tmp_path) -> None:
    entries = tune_steps._entries(settings(env={"A": "1"}), tmp_path / "s", tmp_path / "t")
    environments = {name: dict(entry.environment) for name, entry in entries.items()}
    normal = {"A": "1", "OMP_NUM_THREADS": "1"} | platform_environment("cpu")
    assert normal.items() <= environments[UNTUNED].items()
    assert environments[TUNED] == environments[UNTUNED]
    assert environments[TUNED_PLAIN] == environments[TUNED] | {"GLIBC_TUNABLES": ""}
    assert [("--tuned" in entry.command) for entry in entries.values()] == [False, True, True]


def test_a_gpu_s_contestants_differ_by_the_activated_environment(tmp_path, monkeypatch) -> None:
    def activate(path: Path, *, threads: int) -> dict[str, str]:
        assert (path, threads) == (tmp_path / "t", 1)
        return {"LD_PRELOAD": "here.so", "MINE": "asked", "OVERRIDE": "file"}

    monkeypatch.setattr(tune_steps, "activate", activate)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    own = {"LD_PRELOAD": "users.so", "MINE": "kept"}
    gpu = settings(platform="cuda", gemm_backend="cublaslt", env=own)
    entries = tune_steps._entries(gpu, tmp_path / "s", tmp_path / "t")
    assert list(entries) == [UNTUNED, TUNED]
    before, after = (dict(entry.environment) for entry in entries.values())
    assert "GLIBC_TUNABLES" not in before
    assert own.items() <= before.items()
    assert after == before | {"LD_PRELOAD": "here.so:users.so", "OVERRIDE": "file"}
    assert entries[TUNED].command == entries[UNTUNED].command


@pytest.mark.parametrize("failure", [RaceError("the steps of 'tuned' ended"), OSError("no memory")])
def test_a_failure_keeps_the_tuning_and_is_told(tmp_path, monkeypatch, failure) -> None:
    header = after(tmp_path, monkeypatch, failure)
    assert header.steps is not None
    assert header.steps.reason == str(failure)
    assert header.process is None
    assert header.steps.contestants == {}


@pytest.mark.parametrize(
    ("how", "seconds", "reason"),
    [
        ({"stopped": "disabled"}, SOON, "gemm_tuning.enabled is false"),
        ({"source": "trace"}, SOON, "the shapes were traced"),
        ({"pipeline_model_parallel_size": 2}, SOON, "2 ranks hold one copy of the model"),
        ({}, 3.0, "s were left of gemm_tuning.budget_minutes"),
    ],
)
def test_why_no_step_is_timed(tmp_path, monkeypatch, how, seconds, reason) -> None:
    shapes, tuned = files(tmp_path, **how)
    monkeypatch.setattr(tune_steps, "race", lambda *_, **__: pytest.fail("a process was started"))
    told = whole_steps(settings(), shapes, tuned, deadline=time.monotonic() + seconds)
    header, _ = load_tuned(tuned)
    assert header.steps is not None
    assert reason in header.steps.reason
    assert reason in told
    assert header.process is None


def test_shapes_of_an_unknown_model_are_no_failure(tmp_path) -> None:
    shapes, tuned = files(tmp_path)
    header, _ = load_shapes(shapes)
    save_lines(shapes, header.model_copy(update={"model": {}, "problems": 0}), [])
    told = whole_steps(settings(), shapes, tuned, deadline=time.monotonic() + SOON)
    assert "the shapes do not say of which model they are" in told


@pytest.mark.parametrize("how", [{"gemm_backend": "replay"}, {"gemm_tuning": {"step_rounds": 0}}])
def test_the_file_stays_as_it_is_where_no_steps_are_asked_for(tmp_path, how) -> None:
    shapes, tuned = files(tmp_path)
    before = tuned.read_bytes()
    assert whole_steps(settings(**how), shapes, tuned, deadline=0.0) == ""
    assert tuned.read_bytes() == before


def contestant(*samples: float) -> Contestant:
    return Contestant(kernels="tuned", environment={}, served=0, samples=[list(samples)])


TIMES = st.lists(st.floats(1.0, 1e6), min_size=1, max_size=30)


@given(TIMES, st.floats(0.1, 10.0))
def test_the_ratio_of_equal_times_is_their_factor(times: list[float], factor: float) -> None:
    old = contestant(*times)
    ratio = Ratio.of(contestant(*(factor * us for us in times)), old)
    assert ratio.median == pytest.approx(factor)
    assert ratio.low == pytest.approx(factor)
    assert ratio.high == pytest.approx(factor)
    assert ratio.significant == (len(times) >= 6 and not ratio.low <= 1 <= ratio.high)
    assert not Ratio.of(old, old).significant


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=40))
def test_the_interval_holds_the_median(ratios: list[float]) -> None:
    found = Ratio.of(contestant(*ratios), contestant(*[1.0] * len(ratios)))
    assert min(ratios) <= found.low <= found.median <= found.high <= max(ratios)


def test_the_interval_is_that_of_the_sign_test() -> None:
    """Ranks from a table of binomial confidence intervals of the median, 95 %."""
    for count, first in ((5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6)):
        ratios = [1.0 + rank / 100 for rank in range(1, count + 1)]
        found = Ratio.of(contestant(*ratios), contestant(*[1.0] * count))
        assert (found.low, found.high) == (ratios[first - 1], ratios[-first]), count
        assert found.significant == (count >= 6)


def test_what_the_stage_prints(tmp_path, monkeypatch) -> None:
    found = planted(
        default=[[100.0e3] * 3] * 2, tuned=[[80.0e3] * 3] * 2, plain=[[101.0e3, 80.0e3, 70e3]] * 2
    )
    shapes, tuned = files(tmp_path)
    monkeypatch.setattr(tune_steps, "race", lambda *_, **__: found)
    told = whole_steps(settings(), shapes, tuned, deadline=time.monotonic() + SOON)
    assert "whole steps of one micro-batch, processor time, 6 rounds" in told
    assert "0.800 of default (0.800 to 0.800)\n" in told
    assert "not significant" in told
    assert "ranks start with: default" in told
    assert os.linesep * 2 not in told
