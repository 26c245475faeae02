"""Ranks in containers: on this machine, on each node of a job, in pyxis; and a node's network."""

from __future__ import annotations

import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from primus.container.spec import Container
from primus.errors import UnavailableError
from primus.launch import Ranks, laid_over
from primus.node import first_node, interfaces

_Address = namedtuple("_Address", "family address")


def ranks(runtime: str, **changes: object) -> Ranks:
    container = Container(
        runtime=runtime,  # type: ignore[arg-type]
        image="image:1",
        name="primus-train-0",
        platform="cpu",
        python="/opt/python",
        directory="/repo",
        mounts=(),
        variables=("FROM_ENV",),
    )
    values: dict[str, object] = {
        "module": "primus.train_rank",
        "arguments": ["--x", "a b"],
        "nproc_per_node": 2,
        "nodes": 1,
        "environment": {"SET": "1", "UNSET": None},
        "log_directory": Path("/run/logs"),
        "container": container,
    }
    return Ranks(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "PRIMUS_SLURM_JOB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")


@pytest.mark.parametrize(("number", "module"), [(1, "primus.train_rank"), (2, "primus.agent")])
def test_on_this_machine(number: int, module: str) -> None:
    command = ranks("docker", nproc_per_node=number).command()
    assert command[:4] == [sys.executable, "-m", "primus.container.run", "--container"]
    container = Container.from_json(command[4])
    assert container.variables == ("FROM_ENV", "SET", "UNSET")
    assert command[5:9] == ["--", "-u", "-m", module]
    assert command[-2:] == ["--x", "a b"]


@pytest.mark.usefixtures("_two_nodes")
def test_on_each_node_of_a_job_the_host_starts_the_container() -> None:
    command = ranks("apptainer", nodes=2).command()
    node = command.index("primus.node")
    assert command[0] == "srun"
    assert command[node - 3 : node] == [sys.executable, "-u", "-m"]
    container = Container.from_json(command[command.index("--container") + 1])
    assert (container.runtime, container.image) == ("apptainer", "image:1")
    assert command[command.index("--") :] == ["--", "--x", "a b"]


@pytest.mark.usefixtures("_two_nodes")
def test_with_pyxis_the_step_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    found = ranks("pyxis", nodes=2)
    command = found.command()
    assert {"srun", "--container-image=image:1", "--container-workdir=/repo"} <= set(command)
    start = command.index("/opt/python")
    assert command[start:][:6] == [
        *("/opt/python", "-m", "primus.container.inside", "--", "/opt/python", "-u"),
    ]
    passed = next(o for o in command if o.startswith("--container-env="))
    names = set(passed.removeprefix("--container-env=").split(","))
    assert {"HF_TOKEN", "MASTER_PORT", "PRIMUS_CONTAINER", "PYTHONPATH", "SET"} <= names
    assert "UNSET" not in names
    assert not any("canary" in argument for argument in command)
    assert found.variables()["PRIMUS_CONTAINER"] == "image:1"


def test_pyxis_needs_a_job() -> None:
    with pytest.raises(UnavailableError, match="nodes = 1: "):
        ranks("pyxis").command()


def test_layers_of_an_environment() -> None:
    base = {"A": "1", "B": "2"}
    assert laid_over(base, {"A": None, "C": "3"}, {"C": "4"}) == {"B": "2", "C": "4"}
    assert base == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[03-07,12]", "gpu03"),
        ("gpu[12,03-07],cpu1", "gpu12"),
        ("rack[1-2]node[08-09]", "rack1node08"),
        ("a-b.c[1]", "a-b.c1"),
    ],
)
def test_the_first_of_slurms_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_no_list_of_nodes() -> None:
    with pytest.raises(UnavailableError, match="is no list of nodes"):
        first_node("")


def test_the_network_towards_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's route to 127.0.0.1 starts at 127.0.0.1, which is here given to a device."""
    held = [_Address(socket.AF_INET, "127.0.0.1")]
    other = [_Address(socket.AF_INET, "192.0.2.7"), _Address(socket.AF_INET6, "fe80::1%eth9")]
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"eth9": other, "ib0": held})
    assert interfaces("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"}


@pytest.mark.parametrize("address", ["127.0.0.1", "no address"])
def test_no_network_is_named_where_none_leads_to_it(address: str) -> None:
    assert interfaces(address) == {}
