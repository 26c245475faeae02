"""The directory of a run: whose it is, who writes to it now, and its attempts. No torch here."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from primus.artifacts.run import Attempt, RunIdentity
from primus.errors import ArtifactError, RunConflictError
from primus.files import atomic_write, sha256_file
from primus.trainer.checkpoint_directory import newest_first

logger = logging.getLogger(__name__)

IDENTITY, TUNED, LOCK = "run.json", "tuned.jsonl", "writer.json"


def claim(directory: Path, identity: RunIdentity) -> None:
    """Make the directory this run's, or check that it is already.

    Raises:
        RunConflictError: it belongs to a run with another identity; the difference is named.
    """
    path = directory / IDENTITY
    if not path.exists():
        identity.save(path)
        return
    found = RunIdentity.load(path)
    for name, value in identity.model_dump().items():
        other = getattr(found, name)
        if other != value:
            raise RunConflictError(
                f"{directory}: the run there has {name} = {_short(other)}, this one "
                f"{_short(value)}. Fix: restore what changed, or give this run another identity "
                "(data_version, seed or another experiment name)"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def adopt_tuned(directory: Path, tuned: Path | None) -> tuple[Path | None, str | None]:
    """The tuned result that this run uses for its whole life, and its SHA-256.

    The first start copies it into the run's directory: another choice of kernels in the middle
    of a run would change the rounding of its losses.
    """
    if tuned is None:
        return None, None
    own = directory / TUNED
    if not own.exists():
        with atomic_write(own, "wb") as target, open(tuned, "rb") as source:
            shutil.copyfileobj(source, target)
    digest = sha256_file(own)
    if tuned.exists() and sha256_file(tuned) != digest:
        logger.warning(
            "%s: this run keeps the tuned kernels that it started with; %s has others now",
            own,
            tuned,
        )
    return own, digest


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold the run for this process.

    Raises:
        RunConflictError: a living process holds it, or one on another host whose state cannot
            be seen from here; the owner is named.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            break
        except FileExistsError:
            _drop_if_abandoned(path)
    with os.fdopen(handle, "w") as stream:
        json.dump(me, stream)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def check_free(directory: Path) -> None:
    """Refuse early what `sole_writer` would refuse.

    Raises:
        RunConflictError: as `sole_writer`.
    """
    if (directory / LOCK).exists():
        _drop_if_abandoned(directory / LOCK)


def _drop_if_abandoned(path: Path) -> None:
    try:
        owner = json.loads(path.read_text())
        host, pid, started = owner["host"], int(owner["pid"]), owner["started"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(
            f"{path}: unreadable; another process may be starting. "
            "Fix: try again; delete the file if no trainer runs"
        ) from error
    alive = host != socket.gethostname() or _started(pid) == started
    if alive:
        raise RunConflictError(
            f"{path.parent}: process {pid} on {host} is writing to this run. "
            "Fix: wait for it or stop it; delete the file "
            f"{path.name} only if that process is certainly gone"
        )
    path.unlink(missing_ok=True)


def _started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return None if gone else process.create_time()
    except psutil.NoSuchProcess:
        return None


def attempts(directory: Path) -> list[Attempt]:
    """Every attempt of the run that left a readable record, oldest first."""
    found = []
    for path in sorted((directory / "attempts").glob("*/attempt.json")):
        try:
            found.append(Attempt.load(path))
        except ArtifactError:
            continue
    return found


def new_attempt(directory: Path) -> Path:
    """Make the directory of the next attempt; its name is the attempt's number."""
    root = directory / "attempts"
    root.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in root.iterdir() if path.name.isdigit()]
    path = root / f"{max(numbers, default=0) + 1:03d}"
    path.mkdir()
    return path


def newest_checkpoint(directory: Path) -> str | None:
    """Name of the newest published checkpoint; it is verified only when it is loaded."""
    return next((p.name for p in newest_first(directory / "checkpoints")), None)
