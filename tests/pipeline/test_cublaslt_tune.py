"""The tune stage with cuBLASLt, from shapes to the counters of a process that uses its file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cublaslt_fakes import FAST, ROOT, Fakes, call
from tune_settings import tune_settings

from primus.artifacts.gemm import TunedRow, load_tuned
from primus.gemm.cublaslt.algo_file import FILE_NAME, read_algorithms
from primus.gemm.cublaslt.problem_text import render_problem
from primus.gemm.cublaslt.use import use_of
from primus.gemm.problem import Problem
from primus.gemm.shapes import write_shapes

pytestmark = pytest.mark.slow

FORWARD = Problem(m=24, n=40, k=16, transA="T", a_type="bf16_r")
# The library is not told beta: both have one line.
GRADIENT = Problem(m=24, n=48, k=16, transB="T", a_type="f32_r")
ACCUMULATED = Problem(m=24, n=48, k=16, transB="T", a_type="f32_r", beta=1.0)
BIAS = Problem(m=24, n=40, k=16, a_type="f32_r", bias_vector=True, bias_type="f32_r")
SMALL = Problem(m=24, n=8, k=16, a_type="bf16_r")
GROUPED = Problem(m=24, n=40, k=16, a_type="bf16_r", grouped_gemm=True)
NARROW = Problem(
    m=32, n=48, k=16, transA="T", a_type="f8_r", d_type="bf16_r", scaleA="1", scaleB="1"
)
CALLS = {FORWARD: 4, GRADIENT: 3, ACCUMULATED: 5, BIAS: 2, SMALL: 1, GROUPED: 1, NARROW: 1}


class Stage:
    """A tune stage in a directory of its own."""

    def __init__(self, path: Path, calls: dict[Problem, int]) -> None:
        self.path, self.output = path, path / "tuned.jsonl"
        write_shapes(
            path / "shapes.jsonl",
            {(problem, "forward"): number for problem, number in calls.items()},
            source="record",
            model={},
        )
        settings = tune_settings(
            path / "store",
            platform="cuda",
            gemm_backend="cublaslt",
            workers=1,
            expert_token_factors=[1.0],
        )
        settings.save(path / "settings.json")

    def run(self, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "primus.tune", "--settings", self.path / "settings.json"),
                *("--shapes", self.path / "shapes.jsonl", "--output", self.output),
            ],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def rows(self) -> dict[Problem, TunedRow]:
        return {Problem.from_json(row.problem): row for row in load_tuned(self.output)[1]}


@pytest.fixture(scope="module")
def tuned(fakes: Fakes, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    stage = Stage(tmp_path_factory.mktemp("tune"), CALLS)
    done = stage.run(fakes.environment())
    assert done.returncode == 0, done.stderr
    return stage


def test_planted_winners_are_found_and_lossy_ones_are_not_taken(tuned: Stage) -> None:
    rows = tuned.rows()
    for problem in (FORWARD, GRADIENT, ACCUMULATED, BIAS):
        assert rows[problem].candidate == FAST, problem
        assert rows[problem].gain == pytest.approx(0.2, abs=0.01)
        assert rows[problem].numerics == "exact"
        assert rows[problem].details["default_algorithm"].startswith("Gemm_Cublaslt_id_66_tile_20")
    assert rows[SMALL].candidate == "default"
    assert rows[GROUPED].reason == "cuBLASLt has no grouped_gemm"
    assert rows[NARROW].default_us is not None
    header, _ = load_tuned(tuned.output)
    assert header.stack["device"] == "Fake GPU"
    assert header.stack["libraries"] == {"cublaslt": "130102", "driver": "13000"}
    assert header.failed == 0


def test_the_file_names_every_problem_that_the_library_can_have(tuned: Stage) -> None:
    header, entries = read_algorithms(tuned.output.parent / FILE_NAME)
    assert (header.cublaslt, header.device, header.multiprocessors) == ("130102", "Fake GPU", 132)
    found = {entry.problem: entry.algorithm for entry in entries}
    assert found.keys() == {render_problem(p) for p in CALLS if p != GROUPED}
    assert found[render_problem(FORWARD)] == FAST
    assert found[render_problem(SMALL)] == "default"


def test_training_uses_it_and_says_so(tuned: Stage, fakes: Fakes) -> None:
    calls = [call(p, times=7 * n) for p, n in CALLS.items() if p != GROUPED]
    stranger = Problem(m=99, n=1, k=1, a_type="bf16_r")
    answer = fakes.call(
        [*calls, call(stranger, times=2)],
        PRIMUS_CUBLASLT_FILE=str(tuned.output.parent / FILE_NAME),
    )
    rows = list(tuned.rows().values())
    use = use_of(rows, answer["use"])
    narrow = 7 if tuned.rows()[NARROW].candidate != "default" else 0
    assert use.hits == 7 * (4 + 3 + 5 + 2) + narrow
    assert (use.defaults, use.misses, use.rejections) == (14 - narrow, 2, 0)
    told = {line["problem"]: line for line in use.problems}
    assert told[str(FORWARD)] == {
        "problem": str(FORWARD),
        "calls": 28,
        "use": "hit",
        "candidate": FAST,
    }
    assert told[str(GRADIENT)]["calls"] == 21
    assert told[str(ACCUMULATED)]["calls"] == 35
    assert told[str(GROUPED)]["use"] == "unused"
    assert told[str(stranger)]["use"] == "miss"
    assert {row.text for row in rows} <= told.keys()


def test_a_second_tuning_measures_nothing(tuned: Stage, fakes: Fakes) -> None:
    before = tuned.output.read_bytes()
    done = tuned.run(fakes.environment(FAKE_FAULT="66"))
    assert done.returncode == 0, done.stderr
    assert "0 measured now" in done.stdout
    assert tuned.output.read_bytes() == before


def test_a_kernel_that_faults_costs_its_problem_alone(fakes: Fakes, tmp_path: Path) -> None:
    stage = Stage(tmp_path, {FORWARD: 1})
    done = stage.run(fakes.environment(FAKE_FAULT="67"))
    assert done.returncode == 0, done.stderr
    row = stage.rows()[FORWARD]
    assert (row.candidate, row.default_us) == ("default", None)
    assert "status 3" in row.reason
    assert "the device no longer answers" in done.stderr + row.reason


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"FAKE_NO_DEVICE": "1"}, "start the CUDA driver: CUDA error 100"),
        ({"LD_LIBRARY_PATH": ""}, "no CUDA driver (libcuda.so.1)"),
        ({"PATH": "", "XDG_CACHE_HOME": "/dev/null"}, "no C++ compiler on PATH"),
    ],
)
def test_a_machine_without_what_it_takes_is_a_users_mistake(
    fakes: Fakes, tmp_path: Path, variables: dict[str, str], why: str
) -> None:
    done = Stage(tmp_path, {FORWARD: 1}).run(fakes.environment(**variables))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert why in line
    assert "Fix: " in line
