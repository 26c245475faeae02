"""Running a test program as several ranks: one process imports, and forks the ranks."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run_ranks(program: str, arguments: list[str]) -> None:
    """Run `tests/pipeline/<program>` to its end, in a session of its own.

    Raises:
        AssertionError: some rank failed; the end of what the ranks said.
    """
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tests/pipeline" / program), *arguments],
        env=os.environ
        | {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, output[-4000:]


def fork_ranks(world: int, body: Callable[[], None]) -> None:
    """Run `body` once per rank of a gloo group, and end with status 1 where one of them fails."""
    import torch

    from primus.trainer.platform import install

    warnings.simplefilter("ignore")
    install("cpu")
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    for name in ("batches", "checkpoint", "loop", "optimizer", "parallel"):
        importlib.import_module(f"primus.trainer.{name}")
    # After the imports: in their seconds another process could take the port.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    left = {_fork(rank, world, body) for rank in range(world)}
    failed = False
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status:
            failed = True
            for other in left:
                os.kill(other, signal.SIGKILL)
    sys.exit(int(failed))


def _fork(rank: int, world: int, body: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    status = 1
    try:
        from torch import distributed

        distributed.init_process_group("gloo")
        body()
        distributed.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
