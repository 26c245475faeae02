"""The sockets at which a run's processes listen, watched while it runs."""

from __future__ import annotations

import ipaddress
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from trainer_run import Bench, Run

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

CHANGES = {
    "train_iters": 4,
    "save_interval": 2,
    "eval_iters": 0,
    # Its ranks meet, too, and do so before the training.
    "preflight": {"enabled": True},
}


def watched(run: Run) -> dict[str, set[str]]:
    """Run to the end: the modules that were seen, each with the addresses it listened at.

    Ranks that an agent has forked are shown with its command line, which ends with theirs.
    """
    process, found = run.start(), dict[str, set[str]]()
    while process.poll() is None:
        family = [psutil.Process(process.pid)]
        with suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        for member in family:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = member.cmdline()
                modules = [word for word in words if re.fullmatch(r"primus\.[a-z_]+", word)]
                module = modules[-1 if member.name().startswith("rank") else 0] if modules else ""
                found.setdefault(module, set()).update(
                    entry.laddr.ip
                    for entry in member.net_connections("inet")
                    # A datagram socket with a peer hears nobody else.
                    if entry.status == psutil.CONN_LISTEN
                    or (entry.type.name == "SOCK_DGRAM" and not entry.raddr)
                )
        time.sleep(0.01)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return found


@pytest.mark.fault(
    40,
    injected="another machine of the network wants to join: sockets of a run of one and of two "
    "ranks, watched from start to end, preflight included",
    observed="agents and ranks listen at 127.0.0.1 alone, nothing else listens at all",
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_listens_where_others_could_reach_it(bench: Bench, ranks: int) -> None:
    found = watched(bench.run(f"of-{ranks}", nproc_per_node=ranks, **CHANGES))
    addresses = set().union(*found.values())
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), found
    assert "primus.train" in found
    assert found["primus.train"] == set()
    if ranks == 2:
        assert found["primus.agent"] == {"127.0.0.1"}
        assert found["primus.train_rank"] == {"127.0.0.1"}
        assert found["primus.preflight_rank"] == {"127.0.0.1"}
    assert Path(bench.path / f"of-{ranks}" / "train.json").is_file()
