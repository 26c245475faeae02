"""Faults of jobs and nodes on the real SLURM: survived, said, and nothing left behind."""

from __future__ import annotations

import re

import pytest
from cluster_run import SETTINGS, SLOW, TWO, Bench, Job, Run, leftovers, nothing_is_left_of
from lab import Lab, wait

from primus.artifacts.run import read_attempts

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def limited(bench: Bench) -> Job:
    """A run that takes longer than its job may run; it trains behind other tests, on node 4."""
    settings = SETTINGS | {"train_iters": 130, "lr_decay_iters": 130, "save_interval": 1000}
    settings |= {"slurm": {"warning_seconds": 60}}
    run = bench.run("limited", nproc_per_node=1, **settings)
    elsewhere = "node1,node2,node3"
    return Job(run, nodes=1, environment={"SLOW": "0.5"}, runtime=2, exclude=elsewhere)


@pytest.fixture
def cluster(limited: Job) -> Lab:
    """As `lab`, but the limited run goes on."""
    return Lab.here()


def test_a_second_trainer_is_refused_and_a_cancelled_job_can_go_on(
    cluster: Lab, bench: Bench, undisturbed: Run
) -> None:
    run = bench.run("cancelled", nproc_per_node=2, **SETTINGS)
    job = Job(run, nodes=1, environment={"SLOW": "3"})
    job.wait_for(2)
    status, output = run.fail()
    assert status == 2
    assert re.search(rf"process \d+ on node\d \(SLURM job {job.number}\) is writing", output)
    job.cancel()
    job.ends("failed")
    nothing_is_left_of(run)
    Job(run, nodes=1).finish()
    assert run.curve() == undisturbed.curve()


@pytest.mark.fault(
    17,
    injected="every process of the first of two nodes is killed, slurmd included",
    observed="SLURM starts the job again elsewhere, which resumes; the undisturbed curve",
)
def test_a_lost_node_costs_at_most_what_was_not_saved(
    cluster: Lab, bench: Bench, undisturbed: Run
) -> None:
    """SLURM starts the job again, on other nodes; the dead owner's lease runs out."""
    run = bench.run("lost-node", **TWO)
    job = Job(run, nodes=2, environment=SLOW, exclude="node4")
    job.wait_for(10)
    node = job.nodes()[0]
    cluster.kill_node(node)
    try:
        job.finish()
    finally:
        cluster.start_node(node)
    first, second = read_attempts(run.directory)
    assert (first.status, second.status) == ("failed", "completed")
    assert f"SLURM started job {job.number} again" in first.reason
    assert second.resumed_from in ("iter_0000008", "iter_0000012")
    assert run.curve() == undisturbed.curve()
    nothing_is_left_of(run)


@pytest.mark.fault(
    17,
    injected="a job that SLURM starts again each time before it has saved anything",
    observed="the fourth start refuses in one line",
)
def test_a_job_that_slurm_starts_again_and_again_without_progress_ends(
    cluster: Lab, bench: Bench
) -> None:
    """As on nodes that die under it each time: the fourth start refuses."""
    run = bench.run("again", **TWO)
    dies = (
        "import os, subprocess, time\n"
        "from pathlib import Path\n"
        "import primus.trainer.supervise as supervise\n"
        "from primus.errors import run_main\n"
        "from primus.train import main\n"
        "def lost(ranks, limit=None):\n"
        "    ranks.log_directory.mkdir(parents=True)\n"
        "    subprocess.run(['scontrol', 'requeue', os.environ['SLURM_JOB_ID']], check=True)\n"
        "    time.sleep(60)\n"
        "supervise.run_ranks = lost\n"
        "run_main(main)\n"
    )
    log = Job(run, nodes=2, program=dies).ends("failed")
    assert re.search(r"SLURM has started job \d+ 3 times again without a new checkpoint", log), log
    assert len(list(run.directory.glob("attempts/*"))) == 3


@pytest.mark.fault(
    37,
    injected="the port that is chosen first is slurmd's own",
    observed="another one is taken, in the same attempt",
)
def test_a_port_that_is_taken_is_replaced(cluster: Lab, bench: Bench) -> None:
    """The first choice is the port of SLURM's own daemon, which listens on every node."""
    run = bench.run("port", **TWO | {"train_iters": 2})
    choose = (
        "import primus.launch as launch\n"
        "from primus.errors import run_main\n"
        "from primus.train import main\n"
        "real, first = launch._free_port, [6818]\n"
        "launch._free_port = lambda: first.pop() if first else real()\n"
        "run_main(main)\n"
    )
    job = Job(run, nodes=2, program=choose)
    job.finish()
    assert "the port is taken; trying another one" in job.log()
    assert len(read_attempts(run.directory)) == 1


@pytest.mark.fault(
    39,
    injected="a file lies where the run's directory should be",
    observed="one line, in seconds",
)
def test_an_output_that_cannot_be_written_fails_at_once(cluster: Lab, bench: Bench) -> None:
    run = bench.run("read-only", **TWO)
    run.directory.write_text("a file where the run's directory should be")
    log = Job(run, nodes=2).ends("failed", seconds=60)
    assert re.search(r"error: .*read-only.*Fix: ", log), log
    assert "Traceback" not in log


@pytest.mark.fault(
    15,
    injected="a training that takes longer than the limit of its job",
    observed="told in time, saved, preempted; another turn; no iteration ran twice",
)
def test_a_run_is_longer_than_its_jobs_may_be(limited: Job) -> None:
    limited.finish()
    statuses = [attempt.status for attempt in read_attempts(limited.run.directory)]
    assert len(statuses) >= 2
    assert statuses == [*["preempted"] * (len(statuses) - 1), "completed"]
    iterations = [row.iteration for row in limited.run.rows()]
    assert iterations == list(range(1, 131)), "nothing ran twice"
    wait(lambda: not leftovers(), f"{leftovers()}", seconds=30)
