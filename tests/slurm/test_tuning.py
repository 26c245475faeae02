"""Tuning on the real SLURM: several nodes share the problems of one job, and may be lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from lab import Lab, wait

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from project import EXPERIMENT, REPOSITORY, Project
from replayed_stage import PROBLEMS, ReplayedStage
from trainer_run import settings_of

from primus.artifacts.gemm import load_tuned
from primus.gemm.hipblaslt.results_file import load_results
from tests.unit.hipblaslt_machine import calls, install, problem, rocminfo_text, solutions

pytestmark = pytest.mark.slurm


class Job:
    """A command as a job on two nodes."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
        options = ("--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2")
        done = subprocess.run(
            [
                *("sbatch", *options, "--gres=gpu:2", "--open-mode=append", f"--output={log}"),
                *("--wrap", f"exec {shlex.join(command)}"),
            ],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        self.number = done.stdout.strip()

    def field(self, name: str) -> str:
        """What the controller says of the job, such as its `JobState`."""
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", self.number],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(rf"\b{name}=(\S+)", done.stdout)
        assert found is not None, done.stdout
        return found[1]

    def end(self, state: str = "COMPLETED") -> str:
        """Its output, once it has ended in `state`."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
        wait(lambda: self.field("JobState") in ended, f"job {self.number} does not end", 150.0)
        assert self.field("JobState") == state, self.log.read_text()
        return self.log.read_text()


def hosts(store: Path) -> Counter[str]:
    """How many problems each node has measured."""
    stored = [json.loads(path.read_text()) for path in store.glob("*/*.json")]
    return Counter(times["origin"]["host"] for times in stored if times.get("origin"))


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The result of one node."""
    stage = ReplayedStage(tmp_path_factory.mktemp("one-node"), sample_seconds=0.0)
    subprocess.run(stage.command(), check=True, capture_output=True, cwd=REPOSITORY)
    return stage.output.read_bytes()


@pytest.fixture
def stage(tmp_path: Path) -> ReplayedStage:
    """One of two nodes with two measuring processes each."""
    return ReplayedStage(tmp_path, sample_seconds=0.02, nodes=2, workers=2)


def wait_for(stage: ReplayedStage, problems: int, job: Job) -> None:
    def are_timed() -> bool:
        assert job.field("JobState") in ("PENDING", "CONFIGURING", "RUNNING"), job.log.read_text()
        return len(stage.timed()) >= problems

    wait(are_timed, f"{problems} problems are not timed", 100.0)


def test_two_nodes_share_the_problems_and_find_what_one_does(
    lab: Lab, stage: ReplayedStage, one_node: bytes
) -> None:
    said = Job(stage.command(), stage.path / "job.log").end()
    found = hosts(stage.store)
    assert set(found) == {"node1", "node2"}
    assert found.total() == PROBLEMS
    told = f"{PROBLEMS} measured now ({found['node1']} on node1, {found['node2']} on node2)"
    assert told in said
    assert stage.output.read_bytes() == one_node


def test_a_measuring_process_that_is_killed_costs_no_problem(
    lab: Lab, stage: ReplayedStage, one_node: bytes
) -> None:
    job = Job(stage.command(), stage.path / "job.log")
    wait_for(stage, 3, job)
    for process in psutil.process_iter(["cmdline"]):
        ours = "primus.gemm.node_worker" in (process.info["cmdline"] or ())
        if ours and process.environ().get("SLURMD_NODENAME") == "node2":
            process.send_signal(signal.SIGKILL)
    assert "what it was busy with goes to node1" in job.end()
    assert hosts(stage.store)["node1"] > PROBLEMS / 2
    assert stage.output.read_bytes() == one_node


def test_a_node_that_is_lost_costs_only_what_it_was_busy_with(
    lab: Lab, stage: ReplayedStage, one_node: bytes
) -> None:
    job = Job(stage.command(), stage.path / "job.log")
    wait_for(stage, 3, job)
    other = int(job.field("BatchHost").removeprefix("node")) + 1
    before = stage.timed()
    lab.kill_node(other)
    try:
        # The job goes on with the first node, until SLURM starts it again with two others.
        job.end()
    finally:
        lab.start_node(other)
    after = stage.timed()
    assert {name: after[name] for name in before} == before
    assert stage.output.read_bytes() == one_node


AMD = {"platform": "rocm", "gemm_backend": "hipblaslt"}
SIZES = (128, 256, 384, 512)
RESULTS = "gemm_tune/tune_hipblas_gemm_results.txt"


def amd_stage(path: Path, nodes: int) -> ReplayedStage:
    path.mkdir()
    problems = [problem(k) for k in SIZES]
    return ReplayedStage(path, problems=problems, changes=AMD, nodes=nodes)


@dataclass(frozen=True)
class Amd:
    """A node with stand-ins for AMD's programs, and what its GPUs have found."""

    variables: dict[str, str]
    one: ReplayedStage


@pytest.fixture(scope="module")
def amd(tmp_path_factory: pytest.TempPathFactory) -> Amd:
    path = tmp_path_factory.mktemp("amd")
    found = Amd(install(path / "rocm", solutions(s11=10.0, s12=8.0)), amd_stage(path / "one", 1))
    environment = os.environ | found.variables
    command = found.one.command()
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY, env=environment)
    return found


def test_the_gpus_of_all_nodes_find_what_those_of_one_do(
    lab: Lab, tmp_path: Path, amd: Amd
) -> None:
    variables = install(tmp_path / "rocm", solutions(s11=10.0, s12=8.0))
    two = amd_stage(tmp_path / "two", 2)
    Job(two.command(), two.path / "job.log", **variables).end()
    found = hosts(two.store)
    assert (set(found), found.total()) == ({"node1", "node2"}, len(SIZES))
    assert two.output.read_bytes() == amd.one.output.read_bytes()
    assert (two.path / RESULTS).read_bytes() == (amd.one.path / RESULTS).read_bytes()
    assert len(load_results(two.path / RESULTS).entries) == len(SIZES)
    gpus = {call["env"]["HIP_VISIBLE_DEVICES"] for call in calls(tmp_path / "rocm")}
    assert gpus == {"0", "1"}


def test_the_use_of_kernels_is_read_from_the_logs_of_all_nodes(
    lab: Lab, tmp_path: Path, amd: Amd
) -> None:
    settings = tmp_path / "train.json"
    settings_of("train", pipeline_model_parallel_size=2, nproc_per_node=2).save(settings)
    script = str(Path(__file__).with_name("watched_use.py"))
    places = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "pipeline")])
    found = []
    for nodes in (1, 2):
        output = tmp_path / f"use{nodes}.json"
        arguments = (settings, amd.one.output, amd.one.path / RESULTS, nodes, output)
        command = [sys.executable, script, *map(str, arguments)]
        Job(command, tmp_path / f"{nodes}.log", PYTHONPATH=places).end()
        found.append(json.loads(output.read_text()))
    assert found[0] == found[1]
    assert found[0]["misses"] > 0
    assert not list(amd.one.path.glob("verify-*"))


def test_nodes_of_two_kinds_are_refused(lab: Lab, tmp_path: Path) -> None:
    variables = install(tmp_path / "rocm", solutions(s11=10.0))
    rocminfo = tmp_path / "rocm" / "bin" / "rocminfo"
    for node, device in (("node1", "gfx942:sramecc+:xnack-"), ("node2", "gfx950")):
        (tmp_path / node).write_text(rocminfo_text(device=device))
    rocminfo.write_text(f"#!/bin/sh\ncat '{tmp_path}'/$(hostname)\n")
    stage = amd_stage(tmp_path / "stage", 2)
    said = Job(stage.command(), stage.path / "job.log", **variables).end("FAILED")
    (error,) = [line for line in said.splitlines() if "error:" in line]
    assert "differ from node1: node2: device = 'gfx950' there, 'gfx942:sramecc+:xnack-'" in error
    assert "Fix: ask for equal nodes with slurm.constraint" in error
    assert not stage.store.exists()


def test_the_pipeline_dumps_on_one_node_tunes_on_two_and_reads_text_without_gpus(
    lab: Lab, tmp_path: Path
) -> None:
    project = Project(tmp_path)
    project.set({"gemm_tuning": {"nodes": 2, "coverage": 0.15, "budget_minutes": 5.0}})
    done = project.snakemake(
        *("--profile", "profiles/slurm", f"tune_{EXPERIMENT}", f"data_{EXPERIMENT}"),
        *("--config", "slurm={time: 5, cpu_time: 5, mem_mib: 2000, cpu_mem_mib: 2000}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = subprocess.run(
        ["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    ours = [line for line in said if f"WorkDir={tmp_path} " in f"{line} "]
    asked = {
        re.findall(r"JobName=([a-z]+)", line)[0]: (
            re.findall(r" NumNodes=(\d+)", line)[0],
            "gres" in line,
        )
        for line in ours
    }
    assert asked == {"text": ("1", False), "shapes": ("1", False), "tune": ("2", False)}
    (tuned,) = project.path.glob("output/gemm/*/*/tuned.jsonl")
    header, _ = load_tuned(tuned)
    assert header.stopped == "complete"
    assert set(hosts(project.path / "output" / "gemm" / "store")) == {"node1", "node2"}
