"""Training on the real SLURM: the same losses on several nodes, and every fault survived."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, wait

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from trainer_run import REPOSITORY, Bench, Run

from primus.trainer.run_directory import attempts

pytestmark = pytest.mark.slurm

DENSE: dict[str, Any] = {"num_layers": 4, "train_iters": 20, "global_batch_size": 8}
EXPERTS: dict[str, Any] = {
    "experiment": "mixtral_8x7B_tiny",
    "num_experts": 4,
    "moe_ffn_hidden_size": 32,
    **DENSE,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "DP": DENSE,
    "TP x PP": DENSE | {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "EP": EXPERTS | {"expert_model_parallel_size": 2},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("slurm-training"))


class Job:
    """A run that is trained by a job."""

    def __init__(self, run: Run, *, nodes: int, **resources: Any) -> None:
        self.run = run
        properties = {
            "rule": "train",
            "wildcards": {"experiment": run.directory.name},
            "output": [str(run.directory / "train.json")],
            "threads": 2,
            "resources": {"nodes": nodes, "mem_mb": 4000, "runtime": 10, **resources},
        }
        script = run.bench.path / f"{run.directory.name}.sh"
        environment = f"export PYTHONPATH={REPOSITORY} OMP_NUM_THREADS=1"
        script.write_text(
            f"#!/bin/sh\n# properties = {json.dumps(properties)}\n{environment}\n"
            f"exec {shlex.join(run.command())}\n"
        )
        self.number = self._call("submit", str(script))

    def _call(self, module: str, argument: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"primus.slurm.{module}", argument],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.run.bench.path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self) -> str:
        return self._call("status", self.number)

    def finish(self, seconds: float = 200.0) -> Run:
        wait(lambda: self.status() != "running", f"job {self.number} does not end", seconds)
        assert self.status() == "success", self.log()
        return self.run

    def log(self) -> str:
        logs = (self.run.bench.path / "output" / "logs" / "slurm").glob(f"*.{self.number}.log")
        return "\n".join(path.read_text() for path in logs)

    def wait_for(self, iteration: int) -> None:
        """Until the run has logged `iteration`."""
        text = f'"iteration":{iteration},'
        metrics = self.run.directory / "metrics.jsonl"
        wait(lambda: metrics.exists() and text in metrics.read_text(), self.log(), seconds=100)

    def node(self) -> int:
        """The number of the first node that it runs on."""
        done = subprocess.run(
            ["squeue", "-h", "-j", self.number, "-o", "%B"],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.strip().removeprefix("node"))


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    """Two ranks on this machine, 50 iterations."""
    run = bench.run("undisturbed", nproc_per_node=2)
    run.finish()
    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_nodes_train_as_one_does(lab: Lab, bench: Bench, layout: str) -> None:
    name = layout.replace(" ", "")
    one = bench.run(f"one-{name}", nproc_per_node=4, **LAYOUTS[layout])
    one.finish()
    two = bench.run(f"two-{name}", nproc_per_node=2, nodes=2, **LAYOUTS[layout])
    Job(two, nodes=2).finish()
    assert two.curve() == one.curve()
    logs = {path.name for path in two.directory.glob("attempts/001/logs/*")}
    assert logs == {"node000", "node001"}


def test_four_nodes_keep_the_global_batch(lab: Lab, bench: Bench) -> None:
    changes = DENSE | {"micro_batch_size": 1, "global_batch_size": 8}
    one = bench.run("one-of-eight", nproc_per_node=8, **changes)
    one.finish()
    four = bench.run("four-nodes", nproc_per_node=2, nodes=4, **changes)
    Job(four, nodes=4).finish()
    assert four.curve() == one.curve()
    assert four.manifest().consumed_samples == one.manifest().consumed_samples


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_run_that_is_told_to_stop_goes_on_in_the_jobs_next_turn(
    lab: Lab, bench: Bench, undisturbed: Run, signal: str
) -> None:
    run = bench.run(f"told-{signal}", nproc_per_node=2)
    job = Job(run, nodes=1)
    job.wait_for(7)
    subprocess.run(["scancel", f"--signal={signal}", job.number], check=True)
    job.finish()
    first, *others = [attempt.status for attempt in attempts(run.directory)]
    assert (first, others[-1]) == ("preempted", "completed")
    assert [row.iteration for row in run.rows()] == list(range(1, 51)), "nothing ran twice"
    assert run.curve() == undisturbed.curve()


def test_a_lost_node_costs_at_most_what_was_not_saved(
    lab: Lab, bench: Bench, undisturbed: Run
) -> None:
    run = bench.run("lost-node", nproc_per_node=2)
    job = Job(run, nodes=1)
    job.wait_for(23)
    node = job.node()
    lab.kill_node(node)
    try:
        job.finish()
    finally:
        lab.start_node(node)
    assert len(attempts(run.directory)) == 2
    assert attempts(run.directory)[-1].resumed_from is not None
    assert run.curve() == undisturbed.curve()


def test_a_job_that_is_cancelled_has_failed_and_can_go_on(
    lab: Lab, bench: Bench, undisturbed: Run
) -> None:
    run = bench.run("cancelled", nproc_per_node=2)
    job = Job(run, nodes=1)
    job.wait_for(7)
    subprocess.run(["scancel", job.number], check=True)
    wait(lambda: job.status() == "failed", "it is not failed", seconds=60)
    Job(run, nodes=1).finish()
    assert run.curve() == undisturbed.curve()


def test_a_second_writer_is_refused_and_the_first_one_named(lab: Lab, bench: Bench) -> None:
    run = bench.run("two-writers", nproc_per_node=2, train_iters=400, lr_decay_iters=400)
    job = Job(run, nodes=1)
    job.wait_for(3)
    status, output = run.fail()
    assert status == 2
    assert f"(SLURM job {job.number})" in output
    assert "is writing to this run" in output
    subprocess.run(["scancel", job.number], check=True)
