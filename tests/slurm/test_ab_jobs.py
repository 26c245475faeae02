"""`ab_<experiment>` with `--profile slurm` on the real SLURM: one node or two, and its ends."""

from __future__ import annotations

import subprocess

import psutil
import pytest
from lab import Lab, wait
from snakemake_call import Call, Project, SlurmJob, cluster_project, slurm_jobs

from primus.artifacts.ab import AbManifest
from primus.artifacts.gemm import load_tuned, save_lines

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TARGET = "ab_llama3_8B_tiny"
SHORT = {"rounds": 1, "warm_up_steps": 1, "steps_per_segment": 1}
# A Snakemake that ends removes the directory of locks, also under one that is about to lock.
BESIDE = ("--nolock",)
TWO = ("--config", "nodes=2", "nproc_per_node=1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One whose tokens and tuned kernels are there; one of these is planted."""
    made = cluster_project(tmp_path_factory.mktemp("ab"))
    made.set({"ab": SHORT})
    made.make("tune_llama3_8B_tiny", "data_llama3_8B_tiny")
    (tuned,) = made.path.glob("output/gemm/*/*/tuned.jsonl")
    header, rows = load_tuned(tuned)
    row = next(row for row in rows if "forward" in row.phases)
    planted = row.model_copy(update={"candidate": "split_k", "numerics": "rounding"})
    save_lines(tuned, header, [planted if one is row else one for one in rows])
    return made


class Limited:
    """A comparison over two nodes whose ranks stand still in a job whose time is over.

    SLURM looks for such jobs twice a minute: meanwhile other tests run.
    """

    def __init__(self, project: Project) -> None:
        self.call = Call(project.path, TARGET, *TWO)
        self.call.until(lambda: len(ranks("primus.ab_rank")) == 2)
        self.key = key_of(project)
        (job,) = slurm_jobs(project)
        for rank in ranks(self.key):
            rank.suspend()
        subprocess.run(["scontrol", "update", f"jobid={job.number}", "timelimit=0:01"], check=True)


@pytest.fixture(scope="module")
def limited(project: Project) -> Limited:
    return Limited(project)


@pytest.fixture
def cluster(limited: Limited) -> Lab:
    """As `lab`, but the limited comparison goes on."""
    return Lab.here()


def key_of(project: Project, *others: str) -> str:
    """The key of the one comparison that has begun, but for others."""
    (key,) = {path.name for path in project.path.glob("output/ab/*/*")} - {*others}
    return key


def processes(key: str) -> list[psutil.Process]:
    """Everything that runs for a comparison, on whichever node."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or [])
        if key in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def ranks(key: str) -> list[psutil.Process]:
    return [process for process in processes(key) if process.name().startswith("rank")]


def nothing_is_left_of(key: str, project: Project) -> None:
    wait(lambda: not processes(key), f"{processes(key)}")
    assert not list(project.path.glob(f"output/ab/*/{key}/ab.json"))


def jobs(project: Project, nodes: int) -> list[SlurmJob]:
    return [job for job in slurm_jobs(project) if job.fields["NumNodes"] == str(nodes)]


def result(project: Project, key: str) -> AbManifest:
    (path,) = project.path.glob(f"output/ab/*/{key}/ab.json")
    assert not (path.parent / "segments").exists()
    return AbManifest.load(path)


def is_whole(made: AbManifest, *, nodes: int) -> None:
    """Both sides, in turns, two ranks, and losses that agree: as on one machine."""
    assert (made.nodes, made.ranks) == (nodes, 2)
    assert [(one.round, one.kernels) for one in made.segments] == [(0, "default"), (0, "tuned")]
    assert [one.served > 0 for one in made.segments] == [False, True]
    assert [len(one.seconds) for one in made.segments] == [1, 1]
    assert (made.losses.agree, made.stopped) == (True, "")


def test_a_comparison_that_is_cancelled_half_way_begins_again_in_one_job(
    cluster: Lab, limited: Limited, project: Project
) -> None:
    call = Call(project.path, TARGET, *BESIDE)
    call.until(lambda: bool(list(project.path.glob("output/ab/*/*/segments/000-default/seg*"))))
    key = key_of(project, limited.key)
    (half,) = jobs(project, nodes=1)
    subprocess.run(["scancel", half.number], check=True)
    assert call.end() != 0
    assert "failed: CANCELLED" in call.said()
    assert "Fix: the same command begins it again" in call.said()
    nothing_is_left_of(key, project)

    again = Call(project.path, TARGET, *BESIDE)
    assert again.end() == 0, again.said()
    (_, job) = jobs(project, nodes=1)
    asked = {name: job.fields[name] for name in ("CPUs/Task", "MinMemoryNode", "TimeLimit")}
    assert asked == {"CPUs/Task": "2", "MinMemoryNode": "2000M", "TimeLimit": "00:10:00"}
    is_whole(result(project, key), nodes=1)


def test_a_comparison_over_two_nodes_whose_time_is_over_leaves_nothing_and_can_be_repeated(
    cluster: Lab, limited: Limited, project: Project
) -> None:
    assert limited.call.end() != 0
    assert "failed: TIMEOUT" in limited.call.said()
    nothing_is_left_of(limited.key, project)
    again = Call(project.path, TARGET, *TWO)
    assert again.end() == 0, again.said()
    assert len(jobs(project, nodes=2)) == 2
    is_whole(result(project, limited.key), nodes=2)
