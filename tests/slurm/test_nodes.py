"""Ranks on several nodes of the real SLURM: they meet, write apart, and hear the warning."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab

pytestmark = pytest.mark.slurm


def srun(logs: Path, nodes: int, *arguments: str, job: tuple[str, ...] = ()) -> str:
    """The output of two ranks on each of `nodes` nodes."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([os.getcwd(), str(Path(__file__).parent)]),
        "MASTER_PORT": "29517",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *("--cpu-bind=none", "--kill-on-bad-exit=1", *job),
        *(sys.executable, "-m", "primus.node", "--nproc-per-node", "2", "--log-dir", str(logs)),
        *("--module", "all_reduce", "--", *arguments),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("nodes", [2, 4])
def test_ranks_of_all_nodes_meet_and_log_apart(lab: Lab, tmp_path: Path, nodes: int) -> None:
    shown = srun(tmp_path / "logs", nodes)
    ranks = 2 * nodes
    said = sorted(path.read_text() for path in (tmp_path / "logs").rglob("stdout.log"))
    hosts = {line.split()[3].rstrip(":") for line in said}
    assert [line.split()[1] for line in said] == [str(rank) for rank in range(ranks)]
    assert {line.split()[-1] for line in said} == {str(sum(range(ranks)))}
    assert len(hosts) == nodes
    # The first rank of all is the only one that is shown.
    assert [line for line in shown.splitlines() if "rank 0 on" in line]
    assert "rank 1 on" not in shown


def test_ranks_are_warned_before_the_time_is_over(lab: Lab, tmp_path: Path) -> None:
    srun(tmp_path / "logs", 2, str(tmp_path), job=("--time=1", "--signal=USR1@50"))
    assert sorted(path.name for path in tmp_path.glob("warned.*")) == [
        f"warned.{rank}" for rank in range(4)
    ]


def test_each_node_names_the_network_by_which_it_reaches_the_first(lab: Lab) -> None:
    told = (
        "import os; from primus import node; n = os.environ; "
        "first = node.first_node(n['SLURM_STEP_NODELIST']); "
        "assert first == node.node_names(n['SLURM_STEP_NODELIST'])[0]; "
        "print(n['SLURMD_NODENAME'], node.interfaces(node._address(first)))"
    )
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", "--cpu-bind=none", sys.executable, "-c", told],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        check=True,
        timeout=120,
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(found) == 2
    for variables in map(ast.literal_eval, found.values()):
        name = variables["GLOO_SOCKET_IFNAME"]
        assert name != "lo"
        assert variables == {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
