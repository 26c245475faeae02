"""The whole tune stage with hipBLASLt over several stand-in GPUs: faults, kills, and the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tune_settings import tune_settings

from primus.artifacts.gemm import load_tuned
from primus.gemm.backends.base import BackendSpec
from primus.gemm.hipblaslt.results_file import load_results
from primus.gemm.pool import Pool
from primus.gemm.problem import Problem
from primus.gemm.shapes import write_shapes
from tests.unit.hipblaslt_machine import GIT_VERSION, calls, install, problem, solutions

pytestmark = pytest.mark.slow

RESULTS = "gemm_tune/tune_hipblas_gemm_results.txt"
WINNER = solutions(s11=10.0, s12=8.0)
ALONE = solutions(s11=10.0)


def plan(**by_k: dict[str, Any]) -> dict[str, Any]:
    """Solutions by the problem's k: plan(k128=WINNER)."""
    return ALONE | {"problems": {f"64x64x{k[1:]}": found for k, found in by_k.items()}}


def with_fault(fault: str, where: str = "fault", index: str = "12") -> dict[str, Any]:
    return {"solutions": WINNER["solutions"] | {index: {"us": 9.0, where: fault}}}


class Stage:
    """Runs `python -m primus.tune` on a machine with stand-ins."""

    def __init__(self, directory: Path, planted: dict[str, Any], gpus: int = 2) -> None:
        self.directory, self.rocm = directory, directory / "rocm"
        self.environment = os.environ | install(self.rocm, planted, gpus=gpus)
        for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
            self.environment.pop(name, None)

    def start(
        self, problems: list[Problem], output: str = "out", **tuning: Any
    ) -> subprocess.Popen[str]:
        shapes = self.directory / "shapes.jsonl"
        write_shapes(shapes, {(p, "forward"): 10 for p in problems}, source="record", model={})
        settings = tune_settings(
            self.directory / "store", platform="rocm", gemm_backend="hipblaslt", **tuning
        )
        settings.save(self.directory / "settings.json")
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "primus.tune"),
                *("--settings", self.directory / "settings.json", "--shapes", shapes),
                *("--output", self.directory / output / "tuned.jsonl"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def run(self, problems: list[Problem], output: str = "out", **tuning: Any) -> str:
        with self.start(problems, output, **tuning) as process:
            said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return said


@pytest.mark.fault(
    27,
    injected="a stand-in tool that crashes, hangs, refuses and prints garbage on some problems",
    observed="the others are kept, each failed one has its reason",
)
def test_winners_of_all_gpus_in_one_file_and_faults_as_reasons(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path,
        plan(
            k128=WINNER,
            k384=with_fault("crash"),
            k512=with_fault("crash once", index="11"),
            k768=with_fault("garbage", index="11"),
        ),
        gpus=3,
    )
    problems = [problem(k) for k in (128, 384, 512, 768)]
    biased = problem(128, bias_vector=True, bias_type="bf16_r")
    stage.run([*problems, biased])
    header, rows = load_tuned(tmp_path / "out" / "tuned.jsonl")
    by_text = {row.text: row for row in rows}
    assert by_text[str(problem(128))].candidate == "solution_12"
    assert by_text[str(problem(384))].candidate == "default"
    assert by_text[str(problem(512))].candidate == "solution_12"
    assert "no time that can be read" in by_text[str(problem(768))].reason
    results = load_results(tmp_path / "out" / RESULTS)
    assert results.git_version == GIT_VERSION
    found = [(e.columns["k"], e.solution_index) for e in results.entries]
    assert sorted(found) == [("128", 12), ("512", 12)]  # one for both problems of k = 128
    assert header.peak_tflops["bf16_r"] == pytest.approx(2 * 8192**3 / 1e7, rel=1e-3)
    gpus = {call["env"]["HIP_VISIBLE_DEVICES"] for call in calls(stage.rocm)}
    assert gpus == {"0", "1", "2"}
    said = stage.run(problems, min_gain=0.5)
    assert "0 measured now" in said
    assert "every problem keeps hipBLASLt's default" in said
    assert not (tmp_path / "out" / RESULTS).exists()


@pytest.mark.fault(
    28,
    injected="SIGKILL to the stage",
    observed="what was measured is kept, the rest is measured",
)
def test_a_killed_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    problems = [problem(k) for k in (128, 256, 384, 512)]
    stage = Stage(tmp_path, plan(k128=WINNER))
    with stage.start(problems, workers=1) as process:
        end = time.monotonic() + 120
        while not _stored(stage):
            assert time.monotonic() < end, "nothing was stored"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    before = _stored(stage)
    assert 0 < len(before) < len(problems)
    said = stage.run(problems)
    assert f"{len(problems) - len(before)} measured now, {len(before)} from the store" in said
    assert {path: content for path, content in _stored(stage).items() if path in before} == before
    (entry,) = load_results(tmp_path / "out" / RESULTS).entries
    assert (entry.columns["k"], entry.solution_index, entry.columns["us"]) == ("128", 12, "8")
    count = len(calls(stage.rocm))
    assert "0 measured now, 4 from the store" in stage.run(problems, output="again")
    assert len(calls(stage.rocm)) == count


@pytest.mark.fault(
    27,
    injected="a stand-in tool that hangs",
    observed="it is ended after its limit, and no process is left",
)
def test_a_tool_that_hangs_is_gone_after_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plan(k128=with_fault("hang", index="11"))
    for name, value in install(tmp_path / "rocm", planted).items():
        monkeypatch.setenv(name, value)
    requests = [{"problem": problem(k).to_json()} for k in (128, 256)]
    with Pool(BackendSpec(name="hipblaslt"), 1) as pool:
        answers = {
            request["problem"]["k"]: answer for request, answer in pool.run(requests, timeout=4)
        }
    assert answers[128].timed_out
    assert answers[256].failure is None
    hung = [call["pid"] for call in calls(tmp_path / "rocm") if "128" in call["argv"]]
    assert len(hung) == 2  # it was tried once more
    # The kernel takes a moment to end what has been killed.
    deadline = time.monotonic() + 10
    while alive := [pid for pid in hung if _runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_more_problems_than_any_queue_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hand-run flow hangs at about 100 shapes: it joins its workers before it listens."""
    for name, value in install(tmp_path / "rocm", ALONE).items():
        monkeypatch.setenv(name, value)
    spec = BackendSpec(name="hipblaslt")
    requests = [{"problem": problem(8 * k).to_json()} for k in range(1, 121)]
    with Pool(spec, 2, None, lambda n: {"HIP_VISIBLE_DEVICES": str(n)}) as pool:
        answers = list(pool.run(requests, timeout=60))
    assert len(answers) == 120
    assert not [answer.failure for _, answer in answers if answer.failure]
    assert sum(len(json.dumps(answer.content)) for _, answer in answers) > 1 << 16


def _stored(stage: Stage) -> dict[Path, bytes]:
    """The problems of the store by file."""
    store = stage.directory / "store"
    files = [p for p in store.glob("*/*.json") if len(p.stem) == 20]
    return {path: path.read_bytes() for path in files}
