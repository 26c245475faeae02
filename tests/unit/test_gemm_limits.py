"""Peak and bandwidth bound a problem, and nothing is searched where nothing is left to gain."""

from __future__ import annotations

import time

import pytest
import torch
from gemm_replay import recording, shape

from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec
from primus.gemm.bandwidth import measure_bandwidth
from primus.gemm.limits import Limits, known_limits, measure_bounds, measure_peaks
from primus.gemm.measure import measure_problem, near_bound
from primus.gemm.pool import Pool
from primus.gemm.problem import Problem
from primus.gemm.search import SearchSettings, tune
from primus.gemm.stack import Stack
from primus.gemm.store import Store


def backend(tmp_path, **candidates):
    entry = {name: {"us": us} for name, us in candidates.items()}
    return load_backend(recording(tmp_path / "r.json", [entry]))


def test_the_bound_is_the_larger_of_arithmetic_and_memory(tmp_path) -> None:
    replay = backend(tmp_path, default=[1.0])
    square = Problem(m=1000, n=1000, k=1000)
    # 2 GFLOP at 0.1 TFLOP/s, and 12 MB at 1 GB/s.
    assert Limits({"f32_r": 0.1}, 1000.0).bound_us(square, replay) == pytest.approx(2e4)
    assert Limits({"f32_r": 0.1}, 0.1).bound_us(square, replay) == pytest.approx(1.2e5)
    assert Limits({}, 1.0).bound_us(square, replay) is None
    assert Limits({"f32_r": 0.1}).bound_us(square, replay) is None
    # The estimate is there without any measurement.
    assert Limits({}).estimate_us(square, replay) > 0
    # And its order stays once the bandwidth is known.
    estimates = {Limits({"f32_r": 0.1}, b).estimate_us(square, replay) for b in (None, 9.0)}
    assert len(estimates) == 1


def test_the_bound_knows_in_which_types_a_kernel_may_compute() -> None:
    cpu = load_backend(BackendSpec(name="cpu"))
    problem = Problem(m=64, n=64, k=64, a_type="bf16_r")
    slow = Limits({"bf16_r": 0.05, "f32_r": 0.15}, 1e9).bound_us(problem, cpu)
    assert slow == pytest.approx(problem.flops / 0.15e6)
    assert Limits({"bf16_r": 0.05}, 1e9).bound_us(problem, cpu) is None


@pytest.mark.parametrize(
    ("bound", "pruned"),
    [(100.0, True), (96.0, True), (94.0, False), (104.0, True), (107.0, False)],
)
def test_a_default_near_the_bound_ends_the_search(tmp_path, bound, pruned) -> None:
    replay = backend(tmp_path, default=[100.0], fast=[60.0])
    times, why = near_bound(replay, shape(0).problem, bound)
    assert bool(times) is pruned
    if pruned:
        assert why == f"the default is at {bound / 100:.1%} of what peak and bandwidth allow"
        assert times["default"].screen == [100.0] * 3
    else:
        assert (times, why) == ({}, None)


def test_a_lone_default_is_not_looked_at_twice(tmp_path) -> None:
    replay = backend(tmp_path, default=[100.0])
    assert near_bound(replay, shape(0).problem, 100.0) == ({}, None)
    assert len(measure_problem(replay, shape(0).problem)["default"].screen) == 3


def test_the_search_says_why_it_did_not_search(tmp_path) -> None:
    problem = shape(1).problem
    bound = problem.flops / 0.1e6
    near = {"default": {"us": [bound * 1.01]}, "fast": {"us": [1.0]}}
    far = {"default": {"us": [bound * 1.5]}, "fast": {"us": [bound]}}
    spec = recording(tmp_path / "r.json", [far, near], gb_per_s=1000.0)
    settings = SearchSettings(coverage=1.0)
    result = tune([shape(0), shape(1)], spec, settings, str(tmp_path / "store"))
    assert (result.gb_per_s, result.stopped) == (1000.0, "complete")
    assert [t.choice.candidate for t in result.tuned] == ["fast", "default"]
    assert result.tuned[1].choice.reason.startswith("the default is at 99.0% of what peak")
    assert result.tuned[1].choice.default_us == pytest.approx(bound * 1.01, abs=1e-3)
    # It is in the store, and no setting changes it.
    again = tune([shape(1)], spec, SearchSettings(min_gain=0.0), str(tmp_path / "store"))
    assert (again.measured, again.tuned[0]) == (0, result.tuned[1])


def test_limits_come_from_the_store_and_a_small_budget_is_not_spent_on_them(
    tmp_path, monkeypatch
) -> None:
    spec = recording(tmp_path / "r.json", [{"default": {"us": [1.0]}}], gb_per_s=5.0)
    store = Store(tmp_path / "store", Stack(backend="replay", device="A"))
    replay, types, now = load_backend(spec), ["f32_r"], time.monotonic()
    with Pool(spec, 1) as pool:
        measure_bounds(pool, replay, types, store, now - 7, 60)
        assert known_limits(replay, types, store) == Limits({})
        measure_peaks(pool, types, store, now + 60)
        assert known_limits(replay, types, store) == Limits({"f32_r": 0.1})
        measure_bounds(pool, replay, types, store, now, 60)
        assert known_limits(replay, types, store) == Limits({"f32_r": 0.1}, 5.0)
        monkeypatch.setattr(Pool, "_give", lambda *_: pytest.fail("measured again"))
        measure_peaks(pool, types, store, now + 60)
        measure_bounds(pool, replay, types, store, now, 60)


def test_the_bandwidth_of_this_machine_is_that_of_its_memory(monkeypatch) -> None:
    from primus.gemm import bandwidth

    monkeypatch.setattr(bandwidth, "_GROUP_SECONDS", 0.01)
    monkeypatch.setitem(bandwidth._MIB, "cpu", (32,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert 0.5 < measure_bandwidth() < 1000
    finally:
        torch.set_num_threads(threads)
