"""Two ranks that load damaged checkpoints: what test_damaged_ranks.py starts.

    python damaged_ranks.py DIRECTORY

Each rank writes, per layout and fault, the name of what it has loaded or the error that it met; the
first also what was said of it. What was loaded is saved again: the test compares it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from layout_cases import layout
from layout_ranks import Training, settings_of
from layout_run import fork_ranks
from start_cases import ABOUT
from torch import distributed

LAYOUTS: dict[str, dict[str, Any]] = {
    "sharded optimizer": layout(sharded=True, bf16=True),
    "TP": layout(TP=2),
    "PP": layout(PP=2),
}


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextmanager
def flipped(newest: Path, name: str) -> Iterator[None]:
    """A bit of a rank's file."""
    if distributed.get_rank() == 0:
        flip(newest / name)
    distributed.barrier()
    yield


@contextmanager
def failing(newest: Path, name: str, rank: int, way: str) -> Iterator[None]:
    """On one rank a file ends, or its disk fails, in the middle of the reading."""
    path, preadv = newest / name, os.preadv

    def fail(file: int, parts: Any, at: int) -> int:
        if os.readlink(f"/proc/self/fd/{file}") == str(path) and at > 100_000:
            if way == "EIO":
                raise OSError(5, "Input/output error")
            os.truncate(path, 100_000)
        return preadv(file, parts, at)

    wrong = fail if distributed.get_rank() == rank else preadv
    with (
        mock.patch("os.preadv", wrong),
        mock.patch("primus.trainer.checkpoint_ranges._PIECE", 50_000),
    ):
        yield


FAULTS: dict[str, Callable[[Path], Any]] = {
    "a bit of the first rank's file": lambda newest: flipped(newest, "__0_0.distcp"),
    "a bit of the second rank's file": lambda newest: flipped(newest, "__1_0.distcp"),
    "the second rank's file ends": lambda newest: failing(newest, "__1_0.distcp", 1, "ends"),
    "EIO on the second rank": lambda newest: failing(newest, "__1_0.distcp", 1, "EIO"),
    "EIO on the first rank": lambda newest: failing(newest, "__0_0.distcp", 0, "EIO"),
    # Only the sharded optimizer's ranks read each other's files.
    "EIO in the other rank's file": lambda newest: failing(newest, "__0_0.distcp", 1, "EIO"),
}


class Said(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def attempt(root: Path, changes: dict[str, Any], again: Path) -> dict[str, Any]:
    """Load into a model of other weights, and save what was loaded."""
    from primus.errors import CheckpointError
    from primus.trainer import checkpoint

    said = Said()
    checkpoint.logger.addHandler(said)
    training = Training(settings_of("dense", nproc_per_node=2, seed=99, **changes))
    try:
        found = {"loaded": checkpoint.load_newest(training.state, root, ABOUT["key"])}
        checkpoint.save(training.state, again, ABOUT)
    except CheckpointError as error:
        found = {"error": str(error)}
    finally:
        checkpoint.logger.removeHandler(said)
        training.close()
    return found | {"said": said.lines}


def main(directory: Path) -> None:
    """Every fault in every layout, on one rank."""
    from primus.trainer import checkpoint

    found: dict[str, Any] = {}
    rank = distributed.get_rank()
    for name, changes in LAYOUTS.items():
        training = Training(settings_of("dense", nproc_per_node=2, **changes))
        for _ in range(2):
            training.train(1)
            checkpoint.save(training.state, directory / name / "saved", ABOUT)
        training.close()
        for fault, inject in FAULTS.items():
            place = directory / name / fault
            if rank == 0:
                shutil.copytree(directory / name / "saved", place / "root")
            distributed.barrier()
            with inject(place / "root/iter_0000002"):
                found[f"{name}: {fault}"] = attempt(place / "root", changes, place / "again")
        only = directory / name / "none good"
        if rank == 0:
            shutil.copytree(directory / name / "saved/iter_0000001", only / "iter_0000001")
        distributed.barrier()
        found[f"{name}: nothing"] = attempt(only, changes, directory / name / "nothing/again")
        with flipped(only / "iter_0000001", "__1_0.distcp"):
            found[f"{name}: all damaged"] = attempt(only, changes, only / "again")
    (directory / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    fork_ranks(2, partial(main, Path(sys.argv[1])))
