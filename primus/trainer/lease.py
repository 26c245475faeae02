"""One process at a time writes to a run's directory, on whatever node it runs. No torch here.

The lease is a file per generation, `writer.000003.json`, that names its owner. Who wants the run
makes the next generation, which the file system gives to one alone (a hard link to a written
file), and only when the present owner has let go or is provably gone: its process on this host has
ended, or, on another host, its heartbeat has stood still for a while that was watched here. The
highest generation owns the run. An owner that was taken for dead, because its node had lost the
network, say, sees a higher generation before it publishes a checkpoint, and stops. Nothing here
needs flock or equal clocks, which network file systems and clusters may lack.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.errors import RunConflictError
from primus.files import atomic_write, read_json, umask
from primus.processes import started

# For how long an owner's heartbeat must stand still before the owner counts as gone, where nobody
# says otherwise (`lease_timeout_seconds`). Reading a beat opens its file, on which network file
# systems ask their server; where they are told not to, this must exceed what they keep in mind.
PATIENCE_SECONDS = 60.0
_BEATS = 6

_FILE = re.compile(r"writer\.(\d{6,})\.json")


class Lease:
    """The right to write to a run's directory, held by this process."""

    def __init__(self, directory: Path, generation: int, patience: float) -> None:
        self._directory, self._generation, self._patience = directory, generation, patience
        self._beat_seconds = patience / _BEATS
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Call it before anything in the directory is published.

        Raises:
            RunConflictError: another process has taken the run over.
        """
        newest = _newest(self._directory)
        if newest != self._generation:
            raise RunConflictError(
                f"{self._directory}: the run was taken over by {_read(self._directory, newest)}; "
                "this process writes nothing more. Fix: none is needed: the other one goes on"
            )

    def check_quickly(self) -> None:
        """As `check`, by what the last heartbeat saw: for every iteration.

        Raises:
            RunConflictError: another process has taken the run over.
        """
        if self._lost:
            self.check()

    def release(self) -> None:
        """Let go; whoever comes next need not wait."""
        self._ended.set()
        self._thread.join()
        if _newest(self._directory) == self._generation:
            # Left in place: the next generation must be a higher one.
            # Its content is not read: whoever has damaged it must not keep the run from ending.
            # Nor must a full disk hide why it ends: that this process has gone is seen anyway.
            path = _path(self._directory, self._generation)
            with suppress(OSError), atomic_write(path) as stream:
                json.dump(_content(self._patience) | {"released": True}, stream)
        _beat_path(self._directory, self._generation).unlink(missing_ok=True)

    def _beat(self) -> None:
        path = _beat_path(self._directory, self._generation)
        for count in range(1 << 62):
            # A file system that is full or away for a moment must not end the training: the
            # checks before each checkpoint decide.
            with suppress(OSError):
                path.write_text(str(count), encoding="utf-8")
                self._lost = _newest(self._directory) != self._generation
            if self._ended.wait(self._beat_seconds):
                return


@dataclass(frozen=True)
class _Owner:
    """Who a lease names."""

    host: str
    pid: int
    started: float | None
    job: str | None
    released: bool
    patience: float

    def __str__(self) -> str:
        job = f" (SLURM job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def writer_of(directory: Path) -> str | None:
    """Who writes to the run now, as far as can be told without waiting; None for nobody.

    An owner on another host counts as alive while its last heartbeat is younger than it takes to
    count as gone, by this host's clock.
    """
    newest = _newest(directory)
    owner = _read(directory, newest) if newest else None
    if owner is None or owner.released:
        return None
    if owner.host == socket.gethostname():
        return str(owner) if _lives_here(owner) else None
    try:
        age = time.time() - _beat_path(directory, newest).stat().st_mtime
    except OSError:
        return None
    return str(owner) if age < owner.patience else None


@contextmanager
def lease(directory: Path, patience: float | None = None) -> Iterator[Lease]:
    """Hold the run for this process; waits for an owner on another host to show life.

    Args:
        patience: seconds after which that owner, and for others this one, counts as gone; the
            longer of both holds. None: `PATIENCE_SECONDS`.

    Raises:
        RunConflictError: a living process holds it; the owner is named.
    """
    directory.mkdir(parents=True, exist_ok=True)
    held = _take(directory, PATIENCE_SECONDS if patience is None else patience)
    try:
        yield held
    finally:
        held.release()


def check_free(directory: Path) -> None:
    """Refuse at once what `lease` would refuse without waiting.

    Raises:
        RunConflictError: a living process on this host holds the run.
    """
    newest = _newest(directory)
    if newest:
        owner = _read(directory, newest)
        if not owner.released and _lives_here(owner):
            raise _conflict(directory, newest, owner)


def _take(directory: Path, patience: float) -> Lease:
    while True:
        newest = _newest(directory)
        if newest:
            _wait_until_gone(directory, newest, patience)
        mine = newest + 1
        if not _publish(_path(directory, mine), patience):
            continue
        # One that had fallen asleep may make a generation that others have long gone past.
        if _newest(directory) != mine:
            _path(directory, mine).unlink(missing_ok=True)
            continue
        for generation in _generations(directory):
            if generation < mine:
                _path(directory, generation).unlink(missing_ok=True)
                _beat_path(directory, generation).unlink(missing_ok=True)
        return Lease(directory, mine, patience)


def _wait_until_gone(directory: Path, generation: int, patience: float) -> None:
    owner = _read(directory, generation)
    if owner.released:
        return
    if owner.host == socket.gethostname():
        if _lives_here(owner):
            raise _conflict(directory, generation, owner)
        return
    first = _beat_of(directory, generation)
    patience = max(patience, owner.patience)
    print(f"{directory}: is {owner} alive? Watching it for {patience:.0f} s", flush=True)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(min(1.0, patience / 10))
        if _newest(directory) != generation:
            return
        if _read(directory, generation).released:
            return
        if _beat_of(directory, generation) != first:
            raise _conflict(directory, generation, owner)
    print(f"{directory}: {owner} is gone; taking the run over", flush=True)


def _conflict(directory: Path, generation: int, owner: _Owner) -> RunConflictError:
    return RunConflictError(
        f"{directory}: {owner} is writing to this run. Fix: wait for it or stop it; delete "
        f"{_path(directory, generation).name} only if that process is certainly gone"
    )


def _lives_here(owner: _Owner) -> bool:
    return owner.host == socket.gethostname() and started(owner.pid) == owner.started


def _content(patience: float) -> dict[str, Any]:
    """What a lease of this process says."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "released": False,
        "patience": patience,
    }


def _publish(path: Path, patience: float) -> bool:
    """Make `path` with its whole content, unless it is there already."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # Whoever may read the run may read who writes to it.
        os.fchmod(handle, 0o666 & ~umask())
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(_content(patience), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(name)
    return True


def _read(directory: Path, generation: int) -> _Owner:
    path = _path(directory, generation)
    try:
        content = read_json(path)
        return _Owner(
            host=str(content["host"]),
            pid=int(content["pid"]),
            started=content["started"],
            job=content.get("job"),
            released=bool(content.get("released")),
            patience=float(content.get("patience", PATIENCE_SECONDS)),
        )
    except FileNotFoundError:
        # Its successor has tidied up.
        return _Owner("?", 0, None, None, released=True, patience=0.0)
    except (ValueError, KeyError, TypeError) as error:
        raise RunConflictError(
            f"{path}: names no process. Fix: delete the file if no trainer runs"
        ) from error


def _generations(directory: Path) -> list[int]:
    return [int(found[1]) for name in os.listdir(directory) if (found := _FILE.fullmatch(name))]


def _newest(directory: Path) -> int:
    return max(_generations(directory), default=0) if directory.is_dir() else 0


def _path(directory: Path, generation: int) -> Path:
    return directory / f"writer.{generation:06d}.json"


def _beat_path(directory: Path, generation: int) -> Path:
    return directory / f"writer.{generation:06d}.beat"


def _beat_of(directory: Path, generation: int) -> str | None:
    try:
        return _beat_path(directory, generation).read_text(encoding="utf-8")
    except OSError:
        return None
