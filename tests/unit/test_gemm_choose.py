"""From times to a choice, and the search's rate of false winners under planted noise."""

from __future__ import annotations

from collections import Counter

import pytest
from gemm_replay import recording, shape

from primus.gemm.backends import load_backend
from primus.gemm.choose import choose
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


NOISE = {"sigma": 0.04, "spike_share": 0.1, "spike_factor": 1.5}
PROBLEMS = 300


def chosen(spec) -> Counter[str]:
    backend = load_backend(spec)
    found: Counter[str] = Counter()
    for number in range(PROBLEMS):
        times = measure_problem(backend, shape(number).problem)
        choice = choose(times, min_gain=0.05, allow_lossy=False, alone="")
        found[choice.candidate] += 1
    return found


def test_at_most_one_problem_in_a_hundred_gets_a_false_winner(tmp_path) -> None:
    equal = {"default": {"us": [100.0]}} | {f"x{n}": {"us": [100.0]} for n in range(8)}
    found = chosen(recording(tmp_path / "r.json", [equal] * PROBLEMS, noise=NOISE))
    assert found["default"] >= 0.99 * PROBLEMS


def test_planted_winners_are_found(tmp_path) -> None:
    names = {f"x{n}": {"us": [100.0 + n]} for n in range(4)}
    planted = {"default": {"us": [100.0]}, **names, "planted": {"us": [85.0]}}
    found = chosen(recording(tmp_path / "r.json", [planted] * PROBLEMS, noise=NOISE))
    assert found["planted"] >= 0.95 * PROBLEMS
    assert set(found) <= {"planted", "default"}


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
