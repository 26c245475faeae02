"""From times to a choice, and the search's rate of false winners under planted noise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from gemm_replay import recording, shape

from primus.gemm.backends import load_backend
from primus.gemm.choose import FALSE_WINNERS, MISSED_WINNERS, choose
from primus.gemm.measure import CandidateTimes, measure_problem

D = CandidateTimes(screen=[10.0], runs=[[10.0, 10.2, 10.1]] * 2)


def other(first: float, second: float | None, numerics: str = "exact") -> CandidateTimes:
    runs = [[first, first + 0.2, first + 0.1]]
    if second is not None:
        runs.append([second, second + 0.2, second + 0.1])
    return CandidateTimes.model_validate(
        {"screen": [first], "runs": runs, "numerics": numerics, "error_ratio": 1.0}
    )


def test_the_fastest_confirmed_candidate_wins() -> None:
    times = {"default": D, "good": other(9.0, 9.1), "best": other(8.0, 8.2)}
    choice = choose(times, min_gain=0.05, allow_lossy=False, alone="")
    assert (choice.candidate, choice.default_us, choice.tuned_us) == ("best", 10.1, 8.2)
    assert choice.gain == pytest.approx(1 - 8.2 / 10.1, abs=1e-4)
    assert choice.others == {"good": 9.15}
    assert "both runs" in choice.reason


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        (other(9.7, 9.7), "the best other, x, gains 3.0%, not 5.0%"),
        (other(8.0, 9.9), "x was not confirmed: 20.6%, then 1.0%"),
        (other(10.5, None), "no other candidate was faster"),
        (CandidateTimes(screen=[20.0]), "no other candidate was faster"),
        (CandidateTimes(error="cannot"), "no other candidate was faster"),
        (other(5.0, 5.0, "lossy"), "only lossy candidates were faster"),
    ],
)
def test_the_default_stays_and_the_reason_is_told(times, reason) -> None:
    choice = choose({"default": D, "x": times}, min_gain=0.05, allow_lossy=False, alone="")
    assert (choice.candidate, choice.gain, choice.tuned_us) == ("default", 0.0, 10.1)
    if "not confirmed" in reason:
        assert choice.reason.startswith("x was not confirmed: ")
    else:
        assert choice.reason == reason


def test_lossy_candidates_count_when_they_are_asked_for() -> None:
    times = {"default": D, "x": other(5.0, 5.0, "lossy")}
    choice = choose(times, min_gain=0.05, allow_lossy=True, alone="")
    assert (choice.candidate, choice.numerics) == ("x", "lossy")


def test_the_same_times_serve_every_min_gain() -> None:
    times = {"default": D, "x": other(9.7, 9.7)}
    chosen = [
        choose(times, min_gain=gain, allow_lossy=False, alone="").candidate
        for gain in (0.0, 0.02, 0.05)
    ]
    assert chosen == ["x", "x", "default"]


def test_a_default_without_rival_says_why() -> None:
    choice = choose({"default": D}, min_gain=0.05, allow_lossy=False, alone="no kernel")
    assert (choice.candidate, choice.reason) == ("default", "no kernel")


BUSY_CPU = {"sigma": 0.04, "spike_share": 0.1, "spike_factor": 1.5}
# A neighbour takes a third of the machine for a while, again and again.
SPELLS = {"spell_share": 0.02, "spell_factor": 1.3, "spell_samples": 15}
GPU = {"sigma": 0.01, "spike_share": 0.05, "spike_factor": 1.2}
PROBLEMS = 400
EQUAL = {"default": {"us": [100.0]}} | {f"x{n}": {"us": [100.0]} for n in range(8)}


def chosen(path: Path, candidates: dict, noise: dict, min_gain: float) -> dict[str, float]:
    """The share of the problems that each candidate gets.

    They are one problem whose noise goes on: planting each apart takes longer than the search.
    """
    backend = load_backend(recording(path, [candidates], noise=noise))
    found: Counter[str] = Counter()
    for _ in range(PROBLEMS):
        times = measure_problem(backend, shape(0).problem)
        found[choose(times, min_gain=min_gain, allow_lossy=False, alone="").candidate] += 1
    return {name: count / PROBLEMS for name, count in found.items()}


@pytest.mark.parametrize(
    ("noise", "min_gain"),
    [(BUSY_CPU, 0.05), (BUSY_CPU | SPELLS, 0.05), (GPU, 0.02)],
    ids=["busy CPU", "slow spells", "GPU"],
)
def test_false_winners_are_as_rare_as_stated(tmp_path, noise, min_gain) -> None:
    found = chosen(tmp_path / "r.json", EQUAL, noise, min_gain)
    assert 1 - found["default"] <= FALSE_WINNERS


@pytest.mark.parametrize(
    ("gain", "noise", "min_gain", "missed"),
    [
        *((gain, BUSY_CPU, 0.05, missed) for gain, missed in MISSED_WINNERS.items()),
        (0.05, GPU, 0.02, 0.01),
    ],
    ids=["10 % on a busy CPU", "20 % on a busy CPU", "5 % on a GPU"],
)
def test_planted_winners_are_found_as_often_as_stated(
    tmp_path, gain, noise, min_gain, missed
) -> None:
    planted = EQUAL | {"planted": {"us": [100.0 * (1 - gain)]}}
    found = chosen(tmp_path / "r.json", planted, noise, min_gain)
    assert 1 - found["planted"] <= missed
    assert 1 - found["planted"] - found.get("default", 0) <= FALSE_WINNERS


def test_only_as_many_results_are_compared_as_there_are_finalists(tmp_path) -> None:
    entry = {
        "default": {"us": [100.0]},
        **{f"lossy{n}": {"us": [50.0 + n], "numerics": "lossy"} for n in range(3)},
        **{f"x{n}": {"us": [60.0 + n]} for n in range(6)},
    }
    backend = load_backend(recording(tmp_path / "r.json", [entry]))
    times = measure_problem(backend, shape(0).problem)
    run = {name for name, t in times.items() if t.runs}
    assert run == {"default", "lossy0", "x0", "x1", "x2"}
    assert {name for name, t in times.items() if t.numerics} == run - {"default"} | {
        "lossy1",
        "lossy2",
    }


def test_one_that_lost_a_run_in_any_respect_is_not_run_again(tmp_path) -> None:
    # Faster in its best sample only.
    entry = {"default": {"us": [100.0]}, "x": {"us": [90.0, 101.0, 101.0]}}
    backend = load_backend(recording(tmp_path / "r.json", [entry]))
    times = measure_problem(backend, shape(0).problem)
    assert [len(run) for run in times["x"].runs] == [9]
    for min_gain in (0.0, 0.02):
        choice = choose(times, min_gain=min_gain, allow_lossy=False, alone="")
        assert choice.candidate == "default"


def test_slow_candidates_are_given_up_and_refusals_recorded(tmp_path) -> None:
    entry = {
        "default": {"us": [100.0]},
        "slow": {"us": [200.0]},
        "not": {"us": [1.0], "fault": "refuse"},
        "fast": {"us": [50.0], "numerics": "rounding"},
    }
    backend = load_backend(recording(tmp_path / "r.json", [entry]))
    times = measure_problem(backend, shape(0).problem)
    assert times["slow"].screen == [200.0]
    assert times["slow"].runs == []
    assert times["not"].error is not None
    assert (times["fast"].numerics, len(times["fast"].runs)) == ("rounding", 2)
