"""Where the cluster keeps accounts: a job that the controller has forgotten is found there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from job_calls import Submit, call, ends, run, state, status
from lab import Lab, wait

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def accounts() -> None:
    asked = subprocess.run(["sacct"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip("this cluster keeps no accounts: run make test-slurm")


def forgotten(job: str) -> bool:
    """The controller forgets a job some seconds after its end (MinJobAge)."""
    asked = subprocess.run(
        ["squeue", "-h", "-t", "all", "-j", job], capture_output=True, text=True, check=False
    )
    return asked.returncode != 0 or not asked.stdout.strip()


def test_what_the_controller_forgot_the_accounts_know(submit: Submit, tmp_path: Path) -> None:
    good = submit("true", output="good")
    bad = submit("exit 3", output="bad")
    cancelled = submit("sleep 300", output="cancelled")
    late = submit("sleep 300", output="late")
    for job in (cancelled, late):
        wait(lambda job=job: state(job).startswith("RUNNING"), f"job {job} does not start")
    run("scancel", cancelled)
    run("scontrol", "update", f"jobid={late}", "timelimit=0:01")
    jobs = (good, bad, cancelled, late)
    wait(lambda: all(map(forgotten, jobs)), "the controller does not forget", seconds=120)
    # What they noted themselves is not needed.
    for note in tmp_path.glob(".snakemake/slurm/*.end"):
        note.unlink()
    ends(good, "success")
    for job in (bad, cancelled, late):
        ends(job, "failed")
    assert "its command failed" in call("status", bad).stderr
    assert "CANCELLED by root" in call("status", cancelled).stderr
    assert "TIMEOUT: its time limit of 00:0" in call("status", late).stderr


def test_a_job_that_no_account_knows_has_failed_after_a_while(
    submit: Submit, tmp_path: Path
) -> None:
    submit("true")
    assert status("99999") == "running"
    mark = tmp_path / ".snakemake/slurm/99999.unknown"
    mark.write_text(str(float(mark.read_text()) - 61))
    assert status("99999") == "failed"


def test_account_and_quality_of_service_reach_the_job(lab: Lab, submit: Submit) -> None:
    job = submit("sleep 60", slurm_account="train", qos="normal", sbatch="--account=nobody")
    assert run("squeue", "-h", "-j", job, "-o", "%a %q %P") == "train normal main"
    run("scancel", job)
