"""The checks of the nodes on the real SLURM: broken ones are named, and left out where asked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cluster_run import Bench, Job, Run
from lab import Lab, wait

from primus.artifacts.preflight import Preflight
from primus.artifacts.run import read_attempts

pytestmark = pytest.mark.slurm

# All nodes share two cores with each other and with what else the machine does.
TOLERANT: dict[str, Any] = {"seconds": 150.0, "gemm_fraction": 0.2, "bandwidth_fraction": 0.2}


def train(run: Run, **resources: Any) -> tuple[str, str]:
    """How a job on three nodes ends that trains the run, and what it says."""
    job = Job(run, nodes=3, **resources)
    wait(lambda: not job.runs(), f"job {job.number} does not end", seconds=450)
    return job.status(), job.log()


def checks(run: Run) -> list[Preflight]:
    return [
        Preflight.load(path) for path in sorted(run.directory.glob("attempts/*/preflight.json"))
    ]


@contextmanager
def slow_link(node: int) -> Iterator[None]:
    """What comes to the node comes at 24 Mbit/s."""
    device = f"lab{node}"
    options = ["rate", "24mbit", "burst", "64kb", "latency", "400ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", device, "root", "tbf", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", device, "root"], check=True)


@contextmanager
def other_mounts(lab: Lab, mounts: dict[int, str]) -> Iterator[None]:
    """Nodes on which a command has changed what is mounted."""
    for node, command in mounts.items():
        name = f"node{node}"
        inner = f"hostname {name} && {command} && exec slurmd -N {name}"
        lab.kill_node(node)
        enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "--mount"]
        subprocess.run([*enter, "sh", "-c", inner], check=True)
    lab.wait_ready()
    try:
        yield
    finally:
        for node in mounts:
            lab.kill_node(node)
            lab.start_node(node)


@pytest.mark.fault(
    41,
    injected="what comes to one node of three comes at 24 Mbit/s",
    observed="named before a rank starts; the job trains on others in its next turn",
)
def test_a_slow_node_is_named_and_the_job_trains_on_the_others(lab: Lab, bench: Bench) -> None:
    keys = TOLERANT | {"exclude": True}
    run = bench.run(
        "slow-link", nodes=3, nproc_per_node=1, train_iters=10, global_batch_size=6, preflight=keys
    )
    with slow_link(2):
        state, said = train(run)
    assert state == "success", said
    found = checks(run)
    assert [(f.node, f.check) for f in found[-2].broken] == [("node2", "all-reduce between")]
    assert found[-2].excluded == ["node2"]
    assert "the job goes back to the queue and leaves out node2" in said
    assert sorted(found[-1].hosts) == ["node1", "node3", "node4"]
    assert found[-1].finished
    assert not found[-1].broken


@pytest.mark.fault(
    39,
    injected="one node has the run's directory read-only, another one has its own there",
    observed="both named in one line each before any rank starts",
)
def test_nodes_without_the_runs_directory_are_named_before_any_rank_starts(
    lab: Lab, bench: Bench
) -> None:
    run = bench.run("disks", nodes=3, nproc_per_node=1, global_batch_size=6, preflight=TOLERANT)
    run.directory.mkdir()
    mounts = {
        3: f"mount --bind {run.directory} {run.directory} && "
        f"mount -o remount,bind,ro {run.directory}",
        4: f"mount -t tmpfs tmpfs {run.directory}",
    }
    with other_mounts(lab, mounts):
        state, said = train(run, exclude="node1")
    assert state == "failed"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1:3] for line in lines] == [
        ["node3", "disk"],
        ["node4", "shared directory"],
    ]
    assert "Read-only file system" in lines[0]
    assert all("Fix: " in line for line in lines)
    (found,) = checks(run)
    assert (found.ranks, found.excluded) == ([], [])
    (attempt,) = read_attempts(run.directory)
    assert attempt.status == "failed"
    assert "node3: disk: " in attempt.reason
