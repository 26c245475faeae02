"""A store as one file, so that a team tunes once: a gzipped tar of its JSON files.

Equal stores give equal bytes: sorted names, no times, no owners. What comes in is checked file by
file; a file is taken whole or not at all.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from primus.errors import ArtifactError
from primus.files import atomic_write
from primus.gemm.store import BandwidthFile, PeakFile, StackFile, Times
from primus.gemm.stored import (
    MAX_BYTES,
    STACK_NAME,
    Stored,
    parse_stored,
    read_bytes,
    split_name,
    stored_names,
)

MAX_FILES = 1_000_000
# tarfile reads the next header within this, or the archive is none of ours.
_HEADERS = 1 << 20

Keep = Literal["samples", "newer", "present", "archive"]
KEEP: tuple[Keep, ...] = get_args(Keep)


def export_store(root: Path, keys: Sequence[str], archive: Path) -> int:
    """Write stacks of a store into an archive; how many files it holds.

    Raises:
        ArtifactError: files of the store are damaged; all are named, and nothing is written.
    """
    files, wrong = [], []
    for name in (name for key in sorted(keys) for name in stored_names(root, key)):
        data = read_bytes(root / name)
        try:
            parse_stored(name, data)
        except ArtifactError as error:
            wrong.append(f"{root}: {error}. Fix: delete the file, and the problem is timed again")
        files.append((name, data))
    if wrong:
        raise ArtifactError("\n".join(wrong))
    with (
        atomic_write(archive, "wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    return len(files)


@dataclass
class Imported:
    """What became of the files of an archive.

    Attributes:
        added, same: files that were not there; that were there with the same measurement.
        replaced, kept: what differed, one line each: the archive's was taken; was not.
        refused: why a file was not taken.
    """

    added: int = 0
    same: int = 0
    replaced: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def import_store(archive: Path, root: Path, keep: Keep = "samples") -> Imported:
    """Take the files of an archive into a store.

    Args:
        keep: of two differing measurements of one problem the one with more "samples" (of as many
            the newer one), the "newer" one, the "present" one, or the "archive"'s.

    Raises:
        ArtifactError: it is no archive, or torn: then nothing is taken.
    """
    done = Imported()
    stacks = _stacks(archive)
    for name, data in _members(archive, done.refused):
        parts = split_name(name)
        if parts is None or parts[1] == STACK_NAME:
            _check_stack(name, data, done)
            continue
        if parts[0] not in stacks:
            done.refused.append(f"{name}: the archive does not say what its stack is")
            continue
        try:
            found = parse_stored(name, data)
        except ArtifactError as error:
            done.refused.append(str(error))
            continue
        _prepare(root / parts[0] / STACK_NAME, stacks[parts[0]])
        _take(root, name, found, keep, done)
    return done


def _check_stack(name: str, data: bytes, done: Imported) -> None:
    try:
        parse_stored(name, data)
    except ArtifactError as error:
        done.refused.append(str(error))


def _stacks(archive: Path) -> dict[str, StackFile]:
    """What the stacks of an archive are; their files may stand behind the others."""
    found: dict[str, StackFile] = {}
    for name, data in _members(archive, []):
        if name.endswith(f"/{STACK_NAME}"):
            try:
                stack = parse_stored(name, data)
            except ArtifactError:
                continue  # the second reading says why
            assert isinstance(stack, StackFile)
            found[stack.key] = stack
    return found


def _prepare(path: Path, stack: StackFile) -> None:
    if path.exists():
        parse_stored(f"{path.parent.name}/{path.name}", read_bytes(path))
    else:
        stack.save(path)


def _take(root: Path, name: str, new: Stored, keep: Keep, done: Imported) -> None:
    path = root / name
    if not path.exists():
        new.save(path)
        done.added += 1
        return
    try:
        old = parse_stored(name, read_bytes(path))
    except ArtifactError as error:
        new.save(path)
        done.replaced.append(f"{error}: damaged in the store")
        return
    if _measured(old) == _measured(new):
        done.same += 1
        return
    taken, why = _is_better(old, new, keep)
    if taken:
        new.save(path)
    (done.replaced if taken else done.kept).append(f"{name}: {why}")


def _measured(stored: Stored) -> dict[str, object]:
    return stored.model_dump(exclude={"origin"})


def _is_better(old: Stored, new: Stored, keep: Keep) -> tuple[bool, str]:
    """Whether the archive's file takes the place of the store's, and why."""
    if keep in ("present", "archive"):
        return keep == "archive", f"differs; --keep {keep}"
    if isinstance(old, Times) and isinstance(new, Times):
        here, there = _samples(old), _samples(new)
        if keep == "samples" and here != there:
            return there > here, f"{here} samples in the store, {there} in the archive"
        then, now = _when(old), _when(new)
        return now > then, f"of {then or 'unknown time'} here, {now or 'unknown time'} there"
    # Both are maxima, which noise can only make smaller.
    here_most, there_most = _maximum(old), _maximum(new)
    return there_most > here_most, f"{here_most:g} in the store, {there_most:g} in the archive"


def _samples(times: Times) -> int:
    return sum(len(t.screen) + sum(map(len, t.runs)) for _, t in times.candidates)


def _when(times: Times) -> str:
    return times.origin.measured_at if times.origin is not None else ""


def _maximum(stored: Stored) -> float:
    if isinstance(stored, PeakFile):
        return stored.tflops
    return (stored.gb_per_s or 0.0) if isinstance(stored, BandwidthFile) else 0.0


class _Bounded:
    """The unpacked bytes, no more at a time than a member and its headers may have."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, 0

    def allow(self) -> None:
        self._left = MAX_BYTES + _HEADERS

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArtifactError(f"a member or its header is larger than {MAX_BYTES} bytes")
        return data


def _members(archive: Path, refused: list[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each plain file; why other members are not taken goes to `refused`."""
    try:
        with gzip.open(archive) as unpacked:
            stream = _Bounded(unpacked)
            stream.allow()
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                count = 0
                while (member := tar.next()) is not None:
                    count += 1
                    if count > MAX_FILES:
                        raise ArtifactError(f"it has more than {MAX_FILES} members")
                    data = _plain_file(tar, member, refused)
                    if data is not None:
                        yield member.name.removeprefix("./"), data
                    tar.members.clear()  # or all headers would stay in memory
                    stream.allow()
            while stream.read(1 << 16):
                pass  # to the end, where the checksum is
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ArtifactError(f"{archive}: not an archive of a store, or torn: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{archive}: not an archive of a store: {error}") from error


def _plain_file(tar: tarfile.TarFile, member: tarfile.TarInfo, refused: list[str]) -> bytes | None:
    if member.isdir():
        return None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        refused.append(f"{member.name!r}: is no plain file")
        return None
    if member.size > MAX_BYTES:
        raise ArtifactError(f"{member.name!r} has {member.size} bytes, more than {MAX_BYTES}")
    content = tar.extractfile(member)
    assert content is not None
    data = content.read()
    if len(data) != member.size:
        raise EOFError(f"{member.name!r} ends early")
    return data
