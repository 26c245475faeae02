"""How a stage's ranks are started: one process, or torchrun over the devices of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from primus.errors import UnavailableError

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one attempt.

    Attributes:
        module: what each rank runs, as in `python -m`.
        arguments: its command line.
        environment: set for every rank, on top of this process's own; None: must be unset.
        log_directory: each rank's output is kept there; rank 0's is also shown.
    """

    module: str
    arguments: Sequence[str]
    nproc_per_node: int
    nodes: int
    environment: Mapping[str, str | None]
    log_directory: Path

    def command(self) -> list[str]:
        """The argument list that starts the ranks.

        Raises:
            UnavailableError: more than one node, which needs a cluster's launcher.
        """
        if self.nodes > 1:
            raise UnavailableError(
                f"nodes = {self.nodes}: this machine is one node. "
                "Fix: nodes: 1, or run on a cluster with --profile slurm"
            )
        if self.nproc_per_node == 1:
            return [sys.executable, "-u", "-m", self.module, *self.arguments]
        return [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--standalone", "--nnodes=1", f"--nproc-per-node={self.nproc_per_node}"),
            *(f"--log-dir={self.log_directory}", "--redirects=3", "--tee=0:3"),
            *("--max-restarts=0", "--module", self.module),
            # torchrun would take abbreviations of its own options out of what follows.
            *("--", *self.arguments),
        ]


# Large tensors stay mapped between steps and lie in huge pages, so that they cost no page faults.
_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184"
}


def platform_environment(platform: str) -> dict[str, str]:
    """Variables that ranks on a platform start with where nobody says otherwise.

    On CPUs these are settings of malloc that made whole steps 1.07 to 1.25 times faster on the
    machines measured. The tune stage holds them against a plain malloc and records the plain one
    where that wins; the user's own `env` comes last and replaces either.
    """
    return dict(_ALLOCATOR) if platform == "cpu" else {}


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that hold every threaded library of a rank to `threads` CPU threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(threads) for name in names} | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


def run_ranks(ranks: Ranks) -> int:
    """Start the ranks, pass SIGTERM, SIGINT and SIGUSR1 on to them, and wait.

    Returns:
        the exit status, negative for a signal. It decides nothing by itself: torchrun reports a
        failure for ranks that saved and left after a SIGTERM.
    """
    ranks.log_directory.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, str | None] = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        # Instead of "[default0]:"; torchrun takes an empty one for none given.
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": " ",
        **ranks.environment,
    }
    environment = {name: value for name, value in wanted.items() if value is not None}
    process = subprocess.Popen(
        ranks.command(), env=environment, preexec_fn=_end_with_parent, start_new_session=True
    )

    def forward(number: int, _: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    forwarded = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    end_with_parent(signal.SIGTERM)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process `number` when the one that started it dies (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
