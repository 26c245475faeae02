"""What a job listens at: the address that its nodes use, and no other."""

from __future__ import annotations

import errno
import socket
from datetime import timedelta

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from primus.ranks import network
from primus.ranks.meeting import Meeting


def listening() -> set[str]:
    """Addresses at which this process listens."""
    found = psutil.Process().net_connections("inet")
    return {entry.laddr.ip for entry in found if entry.status == psutil.CONN_LISTEN}


def test_the_store_listens_at_one_address() -> None:
    before = listening()
    meeting = Meeting("127.0.0.1", 0, node=0, nodes=1)
    assert listening() - before == {"127.0.0.1"}
    client = TCPStore("127.0.0.1", meeting.port, is_master=False, timeout=timedelta(seconds=20))
    client.set("a", "b")
    assert client.get("a") == b"b"
    # The same machine by another of its addresses: nobody is there.
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", meeting.port))


def test_an_address_of_a_network() -> None:
    own = [
        found.address
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family == socket.AF_INET and not found.address.startswith("127.")
    ]
    if not own:
        pytest.skip("this machine has no network")
    with network.listener(own[0], 0, nodes=2) as bound:
        assert bound.getsockname()[0] == own[0]


@pytest.mark.parametrize(
    ("address", "why"), [("127.0.0.1", "its own name"), ("192.0.2.7", "of no device")]
)
def test_an_address_that_others_cannot_use(
    address: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with network.listener(address, 0, nodes=2) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"  # noqa: S104
    assert f"takes {address} for its own address" in capsys.readouterr().out


@pytest.mark.fault(
    37,
    injected="another process listens at the port: on every interface, or at this address",
    observed="EADDRINUSE, which the agent answers with another port",
)
@pytest.mark.parametrize("theirs", ["0.0.0.0", "127.0.0.1"])  # noqa: S104
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_port_that_another_holds(theirs: str, nodes: int) -> None:
    with socket.create_server((theirs, 0)) as other:
        with pytest.raises(OSError, match="in use") as raised:
            Meeting("127.0.0.1", other.getsockname()[1], node=0, nodes=nodes)
        assert raised.value.errno == errno.EADDRINUSE


def test_gloo_stays_on_the_machine_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(network.GLOO, raising=False)
    (name,) = network.stay_local().values()
    assert "127.0.0.1" in {found.address for found in psutil.net_if_addrs()[name]}
    monkeypatch.setenv(network.GLOO, "ib0")
    assert network.stay_local() == {}
    monkeypatch.delenv(network.GLOO)
    monkeypatch.setattr("psutil.net_if_addrs", dict)
    assert network.stay_local() == {}
