"""Jobs of Snakemake on the real SLURM: submitted once, and every end told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, wait

pytestmark = pytest.mark.slurm

Submit = Callable[..., str]


def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"primus.slurm.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def status(job: str) -> str:
    done = call("status", job)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def submit(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    root = os.getcwd()
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.chdir(tmp_path)

    def function(command: str, output: str = "out.json", **resources: Any) -> str:
        properties = {
            "rule": "train",
            "wildcards": {"experiment": "llama3_8B_tiny"},
            "output": [output],
            "threads": 1,
            "resources": {"mem_mb": 100, "runtime": 5, **resources},
        }
        script = tmp_path / "snakejob.sh"
        script.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties)}\n{command}\n")
        done = call("submit", str(script))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return function


def ends(job: str, word: str, seconds: float = 60.0) -> None:
    wait(lambda: status(job) != "running", f"job {job} does not end", seconds=seconds)
    assert status(job) == word


def test_a_job_ends_well(submit: Submit, tmp_path: Path) -> None:
    job = submit("hostname; echo $SLURM_JOB_NUM_NODES", nodes=2, gres="gpu:2")
    ends(job, "success")
    log = (tmp_path / "output" / "logs" / "slurm" / f"train.llama3_8B_tiny.{job}.log").read_text()
    assert log.split()[1] == "2"


def test_a_job_that_fails_tells_its_last_lines(submit: Submit) -> None:
    job = submit("echo the reason; exit 3")
    ends(job, "failed")
    done = call("status", job)
    assert "the reason" in done.stderr
    assert "FAILED" in done.stderr


def test_the_same_work_is_not_submitted_twice(submit: Submit) -> None:
    first = submit("sleep 300")
    assert submit("sleep 300") == first
    other = submit("sleep 300", output="other.json")
    assert other != first
    run("scancel", first, other)
    ends(first, "failed")
    again = submit("true")
    assert again not in (first, other)
    ends(again, "success")


def test_a_job_that_exceeds_its_time_has_failed(submit: Submit) -> None:
    job = submit("sleep 300", slurm_partition="short", runtime=1)
    wait(
        lambda: status(job) == "running" and "RUNNING" in run("squeue", "-h", "-j", job, "-o%T"), ""
    )
    run("scontrol", "update", f"jobid={job}", "timelimit=0:01")
    ends(job, "failed", seconds=90)
    assert "TIMEOUT" in call("status", job).stderr


def test_a_controller_that_is_away_costs_nothing(lab: Lab, submit: Submit) -> None:
    job = submit("sleep 2")
    lab.stop_controller()
    done = call("status", job)
    assert (done.stdout.strip(), "asked again later" in done.stderr) == ("running", True)
    lab.start_controller()
    ends(job, "success")


def test_a_forgotten_job_is_known_by_the_end_that_it_noted(lab: Lab, submit: Submit) -> None:
    good, bad = submit("true"), submit("exit 4", output="other.json")
    for job, word in ((good, "success"), (bad, "failed")):
        ends(job, word)
    lab.stop_controller()
    lab.start_controller("-c")  # it forgets all jobs
    assert status(good) == "success"
    assert status(bad) == "failed"


def test_a_job_that_nobody_knows_has_failed_after_a_while(submit: Submit, tmp_path: Path) -> None:
    submit("true")
    assert status("99999") == "running"
    mark = tmp_path / ".snakemake" / "slurm" / "99999.unknown"
    mark.write_text(str(float(mark.read_text()) - 61))
    assert status("99999") == "failed"


def test_a_resource_that_the_cluster_refuses_is_one_line(lab: Lab, submit: Submit) -> None:
    with pytest.raises(AssertionError, match=r"sbatch refuses it: .*partition.*Fix: correct"):
        submit("true", slurm_partition="nowhere")


def test_options_of_the_configuration_reach_sbatch_and_the_command_line_beats_them(
    lab: Lab, submit: Submit
) -> None:
    job = submit("sleep 60", sbatch="--partition=short --nice=7", slurm_partition="scavenge")
    assert run("squeue", "-h", "-j", job, "-o", "%P %y") == "scavenge 7"
    run("scancel", job)
