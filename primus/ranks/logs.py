"""What a rank writes into its files, shown on the terminal as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from primus.quick_imports import quick_imports
from primus.ranks.forks import Program
from primus.ranks.screen import screens


@contextmanager
def shown(program: Program) -> Iterator[None]:
    """Print what a rank says as long as the body runs, and to the end of what it has said."""
    with quick_imports():
        from torch.distributed.elastic.multiprocessing.tail_log import TailLog

    with screens() as streams:
        tails = [
            TailLog("rank", {0: str(path)}, stream, {0: ""})
            for path, stream in zip((program.stdout, program.stderr), streams, strict=True)
        ]
        for tail in tails:
            tail.start()
        try:
            yield
        finally:
            for tail in tails:
                tail.stop()
