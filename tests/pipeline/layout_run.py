"""Starting a program once per rank."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run_ranks(program: str, world: int, arguments: list[str], logs: Path) -> None:
    """Run `tests/pipeline/<program>` as `world` ranks on this machine, to their end.

    Raises:
        AssertionError: some rank failed; the ends of their logs.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
    }
    command = [sys.executable, str(REPOSITORY / "tests/pipeline" / program), *arguments]
    paths = [logs / f"{Path(program).stem}-{world}.{rank}.log" for rank in range(world)]
    ranks = []
    try:
        for rank, path in enumerate(paths):
            with path.open("w") as stream:
                own = environment | {"RANK": str(rank)}
                ranks.append(
                    subprocess.Popen(command, env=own, stdout=stream, stderr=subprocess.STDOUT)
                )
        status = [rank.wait(timeout=900) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert not any(status), "\n".join(path.read_text()[-2000:] for path in paths)
