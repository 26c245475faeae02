"""One node's part of the roll call before a training: `primus.health.roll_call` starts it.

It looks at the node without torch: the directory of the run, the node's own disk, memory and load,
what the drivers of the GPUs report. It prints that as one line of JSON, and then the time whenever
it is asked, until its input ends.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from primus.artifacts.preflight import Disk, NodeReport
from primus.artifacts.provenance import code_version
from primus.errors import run_main
from primus.health import cards, disk


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report, then the time for each line that comes in."""
    parser = argparse.ArgumentParser(prog="python -m primus.preflight_node", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="that all nodes share")
    parser.add_argument("--token", required=True, help="what stands in it")
    parser.add_argument("--mib", type=int, default=64, help="size of the file that is written")
    args = parser.parse_args(argv)
    # SLURM warns every process of a job before its time is over.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    node = int(os.environ.get("SLURM_NODEID", "0"))
    _say(report(node, args.directory, args.token, args.mib).model_dump_json())
    for _ in sys.stdin:
        _say(json.dumps({"node": node, "now": time.time()}))


def report(node: int, directory: Path, token: str, mib: int) -> NodeReport:
    """What this node says of itself; its mark is left in the directory on the way."""
    sees, found = disk.sees_token(directory, token), Disk()
    if sees:
        found = disk.measure(directory, mib)
    if sees and not found.error:
        try:
            disk.leave_mark(directory, node, token)
        except OSError as error:
            found = found.model_copy(update={"error": f"{directory}: {error.strerror}"})
    commit, dirty = code_version()
    return NodeReport(
        node=node,
        host=os.uname().nodename,
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        memory_available_gib=psutil.virtual_memory().available / 2**30,
        python=platform.python_version(),
        commit=commit + (" with changes" if dirty else ""),
        directory=found,
        temporary=disk.measure(Path(tempfile.gettempdir()), min(mib, 8)),
        sees=sees,
        faults=cards.faults(),
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_main(main)
