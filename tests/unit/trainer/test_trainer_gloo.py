"""Groups of gloo that share what torch makes for each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from primus.ranks.network import LOCAL, stay_local

GROUPS = 20
# A process of its own: threads end only with the groups, and other tests have some, too.
CHILD = f"""
import json, sys, psutil, torch
from datetime import timedelta
from torch import distributed
from primus.trainer.gloo import share_devices
me = psutil.Process()
before = me.num_threads()
if sys.argv[1] == "shared":
    share_devices()
store = distributed.HashStore()
distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
groups = [distributed.new_group([0], timeout=timedelta(seconds=7)) for _ in range({GROUPS})]
total = torch.ones(3)
for group in groups:
    distributed.all_reduce(total, group=group)
listening = [c.laddr.ip for c in me.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
kinds = {{type(g._get_backend(torch.device("cpu"))).__name__ for g in groups}}
limits = {{g._get_backend(torch.device("cpu")).options._timeout.seconds for g in groups}}
distributed.barrier()
print(json.dumps([me.num_threads() - before, listening, sorted(kinds), sorted(limits)]))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("how", "devices"), [("shared", 1), ("each", GROUPS + 1)], ids=["shared", "torch's own"]
)
def test_devices(how: str, devices: int) -> None:
    """Two threads of each group work; every device adds one, and a socket that listens."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, how],
        env=os.environ | stay_local(),
        capture_output=True,
        text=True,
        check=True,
    )
    threads, listening, kinds, limits = json.loads(done.stdout)
    assert threads == 2 * (GROUPS + 1) + devices
    assert listening == [LOCAL] * devices
    assert (kinds, limits) == (["ProcessGroupGloo"], [7])
