"""A copy of the results file on the node's own disk or memory.

The library reads the file in every process, releases differ in how often; from a network file
system that has halved the throughput of a training (ROCm/rocm-libraries, issue 2905).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import psutil

from primus.errors import UnavailableError
from primus.files import atomic_write, sha256_file

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4"}
    | {"orangefs", "panfs", "smb3", "smbfs", "virtiofs", "wekafs"}
)
_MEMORY = Path("/dev/shm")  # noqa: S108  # a directory of the user's own is made below it


def local_copy(path: Path) -> Path:
    """Copy a file to this node under the name of its content.

    Any number of ranks and jobs may do so at once: equal content is one file, which appears by
    rename; one that was damaged is written again.

    Raises:
        UnavailableError: no directory of this node can be written.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    copy = local_directory() / f"{path.stem}-{digest}{path.suffix}"
    if not (copy.is_file() and sha256_file(copy) == digest):
        with atomic_write(copy, "wb") as stream:
            stream.write(content)
    return copy


def local_directory() -> Path:
    """This user's directory on the node: below TMPDIR, or in memory where that is a network's.

    Raises:
        UnavailableError: none can be written by this user alone.
    """
    tried: list[str] = []
    for place in (Path(tempfile.gettempdir()), _MEMORY):
        if _file_system(place) in _NETWORK:
            tried.append(f"{place} is on a network file system")
            continue
        directory = place / f"primus-gemm-{os.getuid()}"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            tried.append(f"{directory}: {error.strerror}")
            continue
        if directory.is_symlink() or directory.stat().st_uid != os.getuid():
            tried.append(f"{directory} belongs to another user")
        elif not os.access(directory, os.W_OK | os.X_OK):
            tried.append(f"{directory} cannot be written")
        else:
            return directory
    raise UnavailableError(
        f"no directory of this node for the tuned file: {'; '.join(tried)}. "
        "Fix: set TMPDIR to a directory on the node's own disk"
    )


def _file_system(place: Path) -> str:
    """Type of the file system that holds a directory."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    place = place.resolve()
    return next((mounts[p] for p in (place, *place.parents) if p in mounts), "")
