"""The cluster of these tests is a real one: jobs run on several nodes, and faults are faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab, wait

pytestmark = pytest.mark.slurm


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def submit(script: str, *options: str) -> str:
    return run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", script)


def state(job: str) -> str:
    return run("squeue", "-h", "--states=all", "-j", job, "-o", "%T")


def test_a_job_has_nodes_of_its_own_and_gpus(lab: Lab) -> None:
    nodes = run("srun", "--nodes=2", "hostname").split()
    assert len(set(nodes)) == 2
    assert set(nodes) <= {f"node{number}" for number in range(1, lab.nodes + 1)}
    assert run("srun", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1"


def test_nodes_reach_each_other(lab: Lab) -> None:
    connect = "import socket; print(socket.create_connection(('node2', 6818)).getpeername()[0])"
    assert run("srun", "--nodelist=node1", sys.executable, "-c", connect) == "10.77.0.2"


def test_a_dead_node_is_noticed_and_its_job_runs_elsewhere(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "hosts"
    job = submit(f"hostname >> {out}; sleep 300", "--requeue")
    wait(lambda: out.exists() and out.read_text() != "", "the job does not start")
    first = out.read_text().strip()
    lab.kill_node(int(first.removeprefix("node")))
    wait(lambda: len(out.read_text().split()) == 2, "it is not started again", seconds=60)
    assert out.read_text().split()[1] != first
    run("scancel", job)
    lab.start_node(int(first.removeprefix("node")))


def test_a_cancelled_job_ends(lab: Lab) -> None:
    job = submit("sleep 300")
    wait(lambda: state(job) == "RUNNING", "the job does not start")
    run("scancel", job)
    wait(lambda: state(job) == "CANCELLED", "the job does not end")


def test_the_controller_comes_back_with_its_jobs(lab: Lab) -> None:
    job = submit("sleep 300")
    wait(lambda: state(job) == "RUNNING", "the job does not start")
    lab.stop_controller()
    lab.start_controller()
    wait(lambda: state(job) == "RUNNING", "the job is lost")
