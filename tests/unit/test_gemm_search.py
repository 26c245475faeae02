"""The whole search with worker processes, over recordings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from gemm_replay import recording, shape
from tune_settings import tune_settings

from primus.artifacts.gemm import load_tuned
from primus.errors import ArtifactError, PrimusError, UnavailableError
from primus.gemm import pool as pool_module
from primus.gemm import worker as worker_module
from primus.gemm.backends.base import BackendSpec, ToolFailure
from primus.gemm.backends.replay import ReplayBackend
from primus.gemm.pool import Pool
from primus.gemm.problem import Problem
from primus.gemm.progress import Progress
from primus.gemm.search import SearchSettings, tune
from primus.gemm.shapes import write_shapes
from primus.tune import main

WINNER = {"default": {"us": [100.0]}, "fast": {"us": [80.0]}}
PLAIN = {"default": {"us": [100.0]}, "other": {"us": [101.0]}}
HANGS = {"default": {"us": [100.0]}, "stuck": {"us": [1.0], "fault": "hang"}}
CRASHES = {"default": {"us": [100.0]}, "bad": {"us": [1.0], "fault": "crash"}}
REFUSES = {"default": {"us": [100.0], "fault": "refuse"}}
FAST = SearchSettings(coverage=1.0, problem_timeout_seconds=0.5)


def test_winners_failures_and_the_unknown(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [WINNER, PLAIN, HANGS, CRASHES, REFUSES])
    shapes = [shape(number) for number in range(6)]
    result = tune(shapes, spec, FAST, str(tmp_path / "store"))
    found = [(t.choice.candidate, t.choice.reason) for t in result.tuned]
    assert found[0][0] == "fast"
    assert [candidate for candidate, _ in found[1:]] == ["default"] * 5
    assert found[2][1] == "failed: timeout after 0.5 s"
    assert found[3][1] == "failed: the measuring process ended with status 3"
    assert found[4][1].startswith("failed: default: ")
    assert found[5][1] == "the library has no other kernel"
    assert (result.measured, result.failed, result.stopped) == (6, 3, "complete")
    assert result.peak_tflops == {"f32_r": 0.1}


def test_nothing_is_measured_twice_also_not_a_failure(tmp_path, monkeypatch) -> None:
    spec = recording(tmp_path / "r.json", [WINNER, HANGS, CRASHES])
    shapes = [shape(number) for number in range(3)]
    first = tune(shapes, spec, FAST, str(tmp_path / "store"))
    monkeypatch.setattr(Pool, "_start", lambda self: pytest.fail("a worker was started"))
    second = tune(shapes, spec, FAST, str(tmp_path / "store"))
    assert (second.measured, second.reused) == (0, 3)
    assert second.tuned == first.tuned
    # Another experiment, other settings: the choice differs, the times are the same.
    other = SearchSettings(coverage=1.0, problem_timeout_seconds=0.5, min_gain=0.3)
    third = tune([shape(0, calls=7)], spec, other, str(tmp_path / "store"))
    assert (third.measured, third.tuned[0].choice.candidate) == (0, "default")


def test_a_timeout_is_tried_again_under_a_longer_limit(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [HANGS])
    for timeout in (0.2, 0.3):
        settings = SearchSettings(problem_timeout_seconds=timeout)
        result = tune([shape(0)], spec, settings, str(tmp_path / "store"))
        assert result.measured == 1
        assert result.tuned[0].choice.reason == f"failed: timeout after {timeout} s"


def test_problems_are_taken_by_time_until_the_coverage_is_reached(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [WINNER] * 4)
    shapes = [shape(0, 1), shape(1, 100), shape(2, 1), shape(3, 10)]
    settings = SearchSettings(coverage=0.9)
    result = tune(shapes, spec, settings, str(tmp_path / "store"))
    assert [t.choice.candidate for t in result.tuned] == ["default", "fast", "default", "fast"]
    assert result.tuned[0].choice.reason == "beyond the coverage"
    assert 0.9 <= result.coverage < 1
    assert (result.measured, result.stopped) == (2, "complete")


def test_the_budget_keeps_the_best_so_far(tmp_path, monkeypatch) -> None:
    # The clock leaps over the end of the budget when the first problem is done.
    done: list[str] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1e6 * len(done))
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(Progress, "step", lambda self, text: done.append(text))
    spec = recording(tmp_path / "r.json", [WINNER, HANGS, WINNER])
    shapes = [shape(0, 100), shape(1, 10), shape(2, 1)]
    settings = SearchSettings(coverage=1.0, budget_seconds=600.0, workers=2)
    result = tune(shapes, spec, settings, str(tmp_path / "store"))
    assert result.stopped == "budget"
    assert [t.choice.candidate for t in result.tuned] == ["fast", "default", "default"]
    assert [t.choice.reason for t in result.tuned[1:]] == ["budget", "budget"]
    monkeypatch.undo()
    again = tune(shapes[::2], spec, FAST, str(tmp_path / "store"))
    assert [t.choice.candidate for t in again.tuned] == ["fast", "fast"]
    assert (again.measured, again.reused) == (1, 1)


def test_disabled_measures_nothing(tmp_path, monkeypatch) -> None:
    spec = recording(tmp_path / "r.json", [WINNER])
    monkeypatch.setattr(Pool, "_start", lambda self: pytest.fail("a worker was started"))
    result = tune([shape(0)], spec, FAST, str(tmp_path / "store"), enabled=False)
    assert (result.stopped, result.measured) == ("disabled", 0)
    assert result.tuned[0].choice.reason == "gemm_tuning.enabled is false"


def test_several_workers_share_the_work(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [WINNER, HANGS, WINNER, HANGS, WINNER])
    settings = SearchSettings(coverage=1.0, problem_timeout_seconds=0.5, workers=2)
    result = tune([shape(n) for n in range(5)], spec, settings, str(tmp_path / "store"))
    assert [t.choice.candidate for t in result.tuned] == ["fast", "default"] * 2 + ["fast"]


def test_a_worker_killed_from_outside_costs_its_problem_one_try(tmp_path, monkeypatch) -> None:
    spec = recording(tmp_path / "r.json", [WINNER, PLAIN], sample_seconds=0.01)
    requests = [{"problem": shape(number).problem.to_json()} for number in range(2)]
    with Pool(spec, 1) as pool:
        collect = pool._collect

        def kill_once_it_works(*args):
            busy = next(iter(pool._busy))
            if busy.ready:
                os.kill(busy.pid, signal.SIGKILL)
                monkeypatch.undo()
            return collect(*args)

        monkeypatch.setattr(pool, "_collect", kill_once_it_works)
        answers = [answer for _, answer in pool.run(requests, timeout=60)]
    assert [(a.failure, a.tries) for a in answers] == [(None, 1), (None, 2)]
    assert [a.content["candidates"][1][0] for a in answers] == ["other", "fast"]


def test_a_replaced_worker_keeps_its_number_and_the_environment_of_it(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [CRASHES, CRASHES, WINNER])
    requests = [{"problem": shape(number).problem.to_json()} for number in range(3)]
    asked: list[int] = []

    def environment_of(number: int) -> dict[str, str]:
        asked.append(number)
        return {"PRIMUS_TEST_DEVICE": str(number)}

    with Pool(spec, 2, {"PRIMUS_TEST_DEVICE": "none"}, environment_of) as pool:
        crashed = [answer for _, answer in pool.run(requests[:2], timeout=60)]
        assert [answer.failure for _, answer in pool.run(requests[2:], timeout=60)] == [None]
        devices = {
            process.number: psutil.Process(process.pid).environ()["PRIMUS_TEST_DEVICE"]
            for process in pool._idle
        }
    assert [a.tries for a in crashed if a.failure] == [2, 2]
    assert asked[:2] == [0, 1]
    assert len(asked) >= 5
    assert devices
    assert devices == {number: str(number) for number in devices}


def test_the_last_words_of_a_worker_are_part_of_the_failure(tmp_path, capsys) -> None:
    path = tmp_path / "r.json"
    path.write_text("{", encoding="utf-8")
    spec = BackendSpec(name="replay", threads=0, replay_file=str(path))
    with Pool(spec, 1) as pool, pytest.raises(PrimusError) as caught:
        list(pool.run([{"peak": "f32_r"}], timeout=60))
    said = f"error: {path}: not JSON: "
    assert str(caught.value).startswith(
        f"a measuring process ended at its start with status 65: {said}"
    )
    assert said in capsys.readouterr().err


def test_no_process_outlives_the_pool(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [HANGS])
    with Pool(spec, 1) as pool:
        request = {"problem": shape(0).problem.to_json()}
        assert list(pool.run([request], timeout=60, deadline=time.monotonic() + 1)) == []
        pool._idle.append(pool._start())
        started = pool._idle[0].pid
    assert not psutil.pid_exists(started)


ORPHAN = """
import json, os, sys, time
from primus.gemm.backends.base import BackendSpec
from primus.gemm.pool import Pool
spec, request = json.loads(sys.argv[1]), json.loads(sys.argv[2])
with Pool(BackendSpec(**spec), 1) as pool:
    collect = pool._collect
    def tell(*args):
        worker = next(iter(pool._busy))
        if worker.ready:
            print(worker.pid, flush=True)
        return collect(*args)
    pool._collect = tell
    list(pool.run([request], timeout=600))
"""


def test_a_hanging_worker_does_not_outlive_a_killed_parent(tmp_path) -> None:
    spec = recording(tmp_path / "r.json", [HANGS])
    arguments = [json.dumps(spec.to_json()), json.dumps({"problem": shape(0).problem.to_json()})]
    command = [sys.executable, "-c", ORPHAN, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def test_what_a_worker_has_started_ends_with_the_worker() -> None:
    """As the library's own tool, when the stage is killed and only stdin tells so."""
    program = (
        "import subprocess, sys\n"
        "from primus.gemm import worker\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "worker._read(sys.stdin, None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, start_new_session=True, **pipes
    ) as started:
        child = psutil.Process(int(started.stdout.readline()))
        started.stdin.close()
        assert psutil.wait_procs([child], timeout=60)[1] == []
    assert started.returncode == -signal.SIGKILL


class Tool(ReplayBackend):
    """One whose tool dies now and then."""

    def screen(self, problem: Problem, rounds: int) -> dict[str, list[float] | str]:
        raise ToolFailure("the tool died with signal 11\nand said more")


def test_a_failure_of_the_librarys_tool_asks_for_another_try(tmp_path) -> None:
    backend = Tool(recording(tmp_path / "r.json", [WINNER]))
    request = {"problem": shape(0).problem.to_json()}
    answer = worker_module._answer(backend, request)
    assert answer == {"error": "the tool died with signal 11", "again": True}
    refused = ReplayBackend(recording(tmp_path / "r.json", [REFUSES]))
    assert worker_module._answer(refused, request)["again"] is False
    with Pool(refused.spec, 1) as pool:
        pool._busy[process := pool._start()] = pool_module._Task(request)
        process.ready = True
        assert list(pool._hear(process, answer, 1.0, time.monotonic() + 60)) == []
        assert [task.tries for task in pool._again] == [2]
        # Without the time for another try the failure is the answer.
        pool._busy[pool._idle.pop()] = pool_module._Task(request)
        (_, told), *_ = pool._hear(process, answer, 1.0, time.monotonic() + 0.5)
        assert (told.failure, told.tries) == ("the tool died with signal 11", 1)


def test_a_backend_that_does_not_load_is_an_error(tmp_path, monkeypatch) -> None:
    spec = BackendSpec(name="replay", threads=0, replay_file=str(tmp_path / "missing"))
    with pytest.raises(ArtifactError, match="missing"):
        tune([shape(0)], spec, FAST, str(tmp_path / "store"))
    with (
        Pool(spec, 1) as pool,
        pytest.raises(PrimusError, match="ended at its start with status 65"),
    ):
        list(pool.run([{"peak": "f32_r"}], timeout=60))
    monkeypatch.setattr(pool_module, "START_SECONDS", 0.0)
    good = recording(tmp_path / "r.json", [HANGS])
    with Pool(good, 1) as pool, pytest.raises(PrimusError, match="did not start"):
        list(pool.run([{"peak": "f32_r"}], timeout=60))


def test_backends_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(UnavailableError, match=r"gemm_backend = none: not among .*replay"):
        tune([shape(0)], BackendSpec(name="none"), FAST, str(tmp_path))
    with pytest.raises(UnavailableError, match="replay_file is not set"):
        tune([shape(0)], BackendSpec(name="replay"), FAST, str(tmp_path))


def run_stage(tmp_path: Path, output: str, **tuning) -> Path:
    details = {0: {"algo": 7}}
    spec = recording(tmp_path / "r.json", [WINNER, PLAIN, CRASHES], details=details)
    calls = {(shape(n).problem, "forward"): n + 1 for n in range(3)}
    write_shapes(tmp_path / "shapes.jsonl", calls, source="record", model={})
    keys = {"min_gain": 0.05, "replay_file": spec.replay_file, **tuning}
    tune_settings(tmp_path / "store", **keys).save(tmp_path / "settings.json")
    arguments = ["--settings", tmp_path / "settings.json", "--shapes", tmp_path / "shapes.jsonl"]
    main([str(a) for a in (*arguments, "--output", tmp_path / output)])
    return tmp_path / output


def test_the_stage_writes_the_same_bytes_from_the_same_times(tmp_path, capsys) -> None:
    first = run_stage(tmp_path, "first.jsonl")
    printed = capsys.readouterr().out
    assert (
        "3 problems: 3 measured now, 0 from the store, 1 failed, 1 with a faster kernel" in printed
    )
    second = run_stage(tmp_path, "second.jsonl")
    assert "0 measured now, 3 from the store" in capsys.readouterr().out
    assert first.read_bytes() == second.read_bytes()
    header, rows = load_tuned(first)
    assert (header.problems, header.timed, header.winners, header.failed) == (3, 2, 1, 1)
    assert header.default_us == sum(r.calls * (r.default_us or 0) for r in rows)
    assert header.tuned_us == header.default_us - 20.0
    assert {r.candidate: r.gain for r in rows} == {"fast": 0.2, "default": 0.0}
    assert {r.candidate: r.details for r in rows} == {"fast": {"algo": 7}, "default": {}}


def test_a_result_written_before_there_were_more_fields_still_loads(tmp_path) -> None:
    new = run_stage(tmp_path, "tuned.jsonl")
    lines = [json.loads(line) for line in new.read_text().splitlines()]
    later = {"gb_per_s", "steps", "process", "tokens", "details"}
    old = tmp_path / "old.jsonl"
    old.write_text(
        "".join(
            json.dumps({name: value for name, value in line.items() if name not in later}) + "\n"
            for line in lines
        )
    )
    header, rows = load_tuned(old)
    assert (header.gb_per_s, {row.tokens for row in rows}) == (None, {None})
    assert [row.text for row in rows] == [row.text for row in load_tuned(new)[1]]


def test_torn_and_foreign_artefacts_are_named(tmp_path) -> None:
    good = run_stage(tmp_path, "tuned.jsonl")
    lines = good.read_text().splitlines()
    for content, message in (
        ("\n".join(lines[:-1]) + "\n", "has 2 problems, its header says 3"),
        (lines[0] + "\n" + lines[1][:20], ":2: not JSON"),
        ((tmp_path / "shapes.jsonl").read_text(), ":1: "),
        (lines[0].replace('"schema_version":1', '"schema_version":2'), "schema_version"),
        ("", "is empty"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(content, encoding="utf-8")
        with pytest.raises(ArtifactError) as caught:
            load_tuned(bad)
        assert message in str(caught.value)
    assert json.loads(lines[0])["kind"] == "tuned"
