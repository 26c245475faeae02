"""Jobs of Snakemake on the real SLURM: submitted once, and every end told apart."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_calls import Submit, call, ends, fake, path_with, run, script, state, status
from lab import Lab, wait

pytestmark = pytest.mark.slurm


def test_a_job_ends_well(submit: Submit, tmp_path: Path) -> None:
    asked = time.time()
    times = f"{sys.executable} -c 'from primus.launch import queue_times; print(queue_times())'"
    job = submit(f"hostname; printenv SLURM_JOB_NUM_NODES; {times}", nodes=2, gres="gpu:2")
    ends(job, "success")
    log = (tmp_path / "output" / "logs" / "slurm" / f"train.llama3_8B_tiny.{job}.log").read_text()
    assert log.split()[1] == "2"
    told = ast.literal_eval(log.splitlines()[-1])
    assert asked - 2 < told["submitted"] <= told["job_started"] < time.time()


def test_a_job_that_fails_tells_its_last_lines(submit: Submit) -> None:
    job = submit("echo the reason; exit 3")
    ends(job, "failed")
    done = call("status", job)
    assert "the reason" in done.stderr
    assert f"job {job} (train.llama3_8B_tiny) failed: its command failed" in done.stderr


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


def test_work_that_is_submitted_twice_at_once_is_one_job(submit: Submit, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "primus.slurm.submit"]
    path = script(tmp_path, "sleep 300", "out.json")
    calls = [
        subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    numbers = {call.communicate(timeout=120)[0].strip() for call in calls}
    assert len(numbers) == 1
    waiting = run("squeue", "-h", "-t", "pending,running", "-o", "%i").split()
    assert waiting == list(numbers)
    run("scancel", *numbers)


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


def test_a_time_that_the_partition_does_not_give_is_no_endless_wait(submit: Submit) -> None:
    job = submit("true", slurm_partition="short", runtime=60)
    ends(job, "failed")
    assert "it would wait for ever: PartitionTimeLimit" in call("status", job).stderr
    run("scancel", job)


def test_options_of_the_configuration_reach_sbatch_and_the_command_line_beats_them(
    lab: Lab, submit: Submit
) -> None:
    job = submit("sleep 60", sbatch="--partition=short --nice=7", slurm_partition="scavenge")
    assert run("squeue", "-h", "-j", job, "-o", "%P %y") == "scavenge 7"
    run("scancel", job)


@pytest.mark.fault(
    18,
    injected="squeue, sacct and scontrol fail or answer nonsense while a job runs and after it",
    observed="it counts as running until they answer; then it has ended well",
)
def test_a_queue_that_cannot_be_asked_ends_nothing(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = submit("sleep 1"), submit("exit 1", output="other.json")
    with monkeypatch.context() as blocked:
        blocked.setenv("PATH", path_with(tmp_path / "fakes"))
        for answer in ("echo blocked >&2; exit 1", "echo all is well", "echo '|||||'"):
            for name in ("squeue", "sacct", "scontrol"):
                fake(tmp_path / "fakes", name, answer)
            assert (status(good), status(bad)) == ("running", "running")
        wait(lambda: len(list(tmp_path.glob(".snakemake/slurm/*.end"))) == 2, "they do not end")
        assert (status(good), status(bad)) == ("running", "running")
    ends(good, "success")
    ends(bad, "failed")


def test_a_controller_that_is_away_at_submission_is_waited_for(
    lab: Lab, submit: Submit, tmp_path: Path
) -> None:
    lab.stop_controller()
    path = script(tmp_path, "true", "out.json")
    command = [sys.executable, "-m", "primus.slurm.submit", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        time.sleep(1)
        assert waiting.poll() is None
        lab.start_controller()
        job, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    ends(job.strip(), "success")
    assert (
        run("squeue", "-h", "-t", "all", "-o", "%i", "--name=train.llama3_8B_tiny")
        .split()
        .count(job.strip())
        == 1
    )


def test_a_held_job_says_how_to_release_it(submit: Submit) -> None:
    job = submit("sleep 300")
    wait(lambda: state(job).startswith("RUNNING"), f"job {job} does not start")
    run("scontrol", "requeuehold", job)
    wait(lambda: status(job) != "running", f"job {job} is not held", seconds=60)
    assert f"scontrol release {job}" in call("status", job).stderr


def test_a_preempted_job_goes_on_when_there_is_room(lab: Lab, submit: Submit) -> None:
    everything = {"nodes": lab.nodes, "mem_mb": 60000}
    cheap = submit("sleep 2", slurm_partition="scavenge", **everything)
    wait(lambda: state(cheap).startswith("RUNNING"), f"job {cheap} does not start")
    urgent = submit("sleep 1", output="other.json", **everything)
    ends(urgent, "success")
    assert status(cheap) != "failed"
    ends(cheap, "success", seconds=120)


def test_the_accounting_is_not_needed(submit: Submit) -> None:
    job = submit("true")
    ends(job, "success")
    asked = subprocess.run(["sacct", "-j", job], capture_output=True, text=True, check=False)
    assert "accounting storage is disabled" in asked.stderr
