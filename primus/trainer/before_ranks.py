"""The record of an attempt that ends before it has ranks, which write it otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from primus.artifacts.run import Attempt
from primus.errors import PreemptedError, PrimusError, UserError
from primus.launch import queue_times
from primus.trainer import run_directory
from primus.trainer.checkpoint_directory import iteration_of


@contextmanager
def recorded(attempt: Path, world_size: int) -> Iterator[None]:
    """Keep in `attempt.json` why the body ended the attempt, where it did; the error goes on.

    Args:
        attempt: the attempt's directory. world_size: ranks that it would have had.
    """
    started = time.time()
    try:
        yield
    except PrimusError as error:
        resumed = run_directory.newest_checkpoint(attempt.parent.parent)
        reached = iteration_of(Path(resumed)) if resumed is not None else 0
        Attempt(
            number=int(attempt.name),
            status="preempted" if isinstance(error, PreemptedError) else "failed",
            reason="; ".join(str(error).splitlines()),
            mendable=isinstance(error, UserError),
            started=started,
            finished=time.time(),
            first_iteration=reached or 0,
            last_iteration=reached or 0,
            resumed_from=resumed,
            host=os.uname().nodename,
            pid=os.getpid(),
            world_size=world_size,
            job=os.environ.get("SLURM_JOB_ID"),
            **queue_times(),
        ).save(attempt / "attempt.json")
        raise
