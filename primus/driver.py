"""Which Snakemake works in this directory, and what to do about the lock of one that is gone.

Snakemake's own lock names nobody, and stays when its owner is killed. Beside it stands a note with
the owner's user, host and process, from the first job to the last. Jobs of a cluster are found
there, so the lock of an owner that has certainly ended is taken away. Jobs on this machine may live
on unseen: there a person decides.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from primus.config.announce import on_cluster
from primus.files import atomic_write
from primus.processes import started

LOCKS = Path(".snakemake") / "locks"
NOTES = Path(".snakemake") / "drivers"
# A dry run locks nothing; jobs and local rules are parts of a Snakemake that has locked already.
_LOCKS_NOTHING = re.compile(r"-n.*|--dry-?run|--unlock|--mode(=.*)?")


_BY_HAND = (
    "what it started may run on. When nothing does, type snakemake --unlock and the same command "
    "again"
)


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A Snakemake that runs jobs in this directory.

    Attributes:
        started: when its process did, in seconds since the epoch: numbers of processes come again.
        cluster: its jobs run elsewhere.
    """

    user: str
    host: str
    pid: int
    started: float
    cluster: bool

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started))
        return f"Snakemake of {self.user} (process {self.pid} on {self.host}, since {since})"


def arrive(words: Sequence[str]) -> None:
    """Name who works here, or has worked here and is gone.

    Args:
        words: Snakemake's command line.
    """
    if any(_LOCKS_NOTHING.fullmatch(word) for word in words):
        return
    gone, others = {}, []
    for path in sorted(NOTES.glob("*.json")):
        driver = _read(path)
        if driver is not None and not _has_ended(driver):
            others.append(driver)
        elif driver is not None:
            gone[path] = driver
    for driver in others:
        _say(f"{driver} works in this directory; {_way_on(driver)}")
    if others or not gone:
        return
    locked = LOCKS.is_dir()
    if locked and not (on_cluster(words) and all(driver.cluster for driver in gone.values())):
        for driver in gone.values():
            _say(f"{driver} has ended without a word; {_BY_HAND}")
        return
    if locked:
        # The files that --unlock removes.
        shutil.rmtree(LOCKS, ignore_errors=True)
    for path, driver in gone.items():
        path.unlink(missing_ok=True)
        if locked:
            _say(f"{driver} has ended without a word: its lock is removed; its jobs are found")


def hold(words: Sequence[str]) -> None:
    """Leave a note that this process works here.

    Args:
        words: Snakemake's command line.
    """
    me = psutil.Process()
    driver = Driver(
        user=_user(),
        host=socket.gethostname(),
        pid=me.pid,
        started=me.create_time(),
        cluster=on_cluster(words),
    )
    NOTES.mkdir(parents=True, exist_ok=True)
    with atomic_write(_note()) as stream:
        json.dump(asdict(driver), stream)


def leave() -> None:
    """Take the note away."""
    _note().unlink(missing_ok=True)


def began() -> float | None:
    """When the Snakemake by whose doing this process runs was started; None where there is none."""
    parents = psutil.Process().parents()
    return next((p.create_time() for p in parents if _note(p.pid).exists()), None)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Some containers know no names.
        return str(os.getuid())


def _note(pid: int | None = None) -> Path:
    return NOTES / f"{socket.gethostname()}.{pid or os.getpid()}.json"


def _read(path: Path) -> Driver | None:
    try:
        return Driver(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _has_ended(driver: Driver) -> bool:
    """Of one on another host nothing is certain."""
    if driver.host != socket.gethostname():
        return False
    return started(driver.pid) != driver.started


def _way_on(driver: Driver) -> str:
    if driver.host == socket.gethostname():
        return "wait for it or end it there, its jobs run on"
    return (
        "wait for it, or, if it was killed there, type snakemake --unlock and the same command "
        "again: its jobs are found"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
