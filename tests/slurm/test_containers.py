"""Real containers on the nodes of a real SLURM: ranks meet, and what SLURM kills is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lab import Lab

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from podman_here import Podman

from primus.config.mount import Mount
from primus.container.spec import Container

pytestmark = pytest.mark.slurm

# Of the repository's root, which is all that Python in a container knows.
MODULE = "tests.slurm.all_reduce"


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    found = Podman(tmp_path_factory.mktemp("podman"))
    if found.unusable:
        pytest.skip(found.unusable)
    return found


def start(podman: Podman, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Two ranks on each of two nodes, each node's in a container of its own."""
    keys = podman.settings()
    places = (Mount(os.getcwd(), os.getcwd()), Mount(str(directory), str(directory)))
    container = Container(
        runtime="podman",
        image=keys["image"],
        name="primus-test",
        platform="cpu",
        python=keys["python"],
        directory=os.getcwd(),
        mounts=(*places, *(Mount.parse(text) for text in keys["mounts"])),
        options=tuple(keys["options"]),
    )
    environment = os.environ | podman.environment | {"MASTER_PORT": "29517", "OMP_NUM_THREADS": "1"}
    command = [
        *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpu-bind=none"),
        *("--kill-on-bad-exit=1", "--job-name=contained", sys.executable, "-m", "primus.node"),
        *("--nproc-per-node", "2", "--log-dir", str(directory / "logs")),
        *("--container", container.to_json(), "--module", MODULE, "--", *arguments),
    ]
    return subprocess.Popen(
        command,
        env=environment | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(directory: Path) -> list[str]:
    return sorted(path.read_text() for path in (directory / "logs").rglob("stdout.log"))


def ranks(directory: Path) -> list[int]:
    """Processes of this machine, whatever started them, that run a rank of this test."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if MODULE in words and str(directory) in words:
            found.append(process.pid)
    return found


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ranks_in_containers_of_two_nodes_meet(lab: Lab, podman: Podman, tmp_path: Path) -> None:
    process = start(podman, tmp_path)
    _, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert [line.split()[1] for line in said(tmp_path)] == ["0", "1", "2", "3"]
    assert {line.split()[3] for line in said(tmp_path)} != {os.uname().nodename}
    assert {line.split()[-1] for line in said(tmp_path)} == {"6"}
    assert podman.containers() == []


def test_containers_end_with_the_job_that_slurm_kills(
    lab: Lab, podman: Podman, tmp_path: Path
) -> None:
    """Their processes are no descendants of the job's."""
    process = start(podman, tmp_path, str(tmp_path))
    wait_for(lambda: len([text for text in said(tmp_path) if "sum 6" in text]) == 4)
    assert len(podman.containers()) == 2
    assert ranks(tmp_path)
    subprocess.run(["scancel", "--signal=KILL", "--name=contained"], check=True)
    process.communicate(timeout=300)
    assert process.returncode != 0
    wait_for(lambda: not ranks(tmp_path) and podman.containers() == [])
