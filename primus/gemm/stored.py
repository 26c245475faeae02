"""The files of a store, checked: what `primus.gemm.store` writes, from wherever it came."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from primus.errors import ArtifactError
from primus.gemm.backends.base import DEFAULT
from primus.gemm.problem import Problem
from primus.gemm.store import BandwidthFile, PeakFile, StackFile, Times

# Hundreds of kernels with all their samples are some 100 KiB.
MAX_BYTES = 16 << 20
STACK_NAME = "stack.json"

_KEY = re.compile(r"[0-9a-f]{16}")
_PROBLEM = re.compile(r"([0-9a-f]{20})\.json")
_PEAK = re.compile(r"peak\.([a-z0-9_]{1,16})\.json")
_CANDIDATE = re.compile(r"[A-Za-z0-9_.:+-]{1,200}")

Stored = StackFile | Times | PeakFile | BandwidthFile


def split_name(name: str) -> tuple[str, str] | None:
    """The stack's key and the file's name in `<key>/<file>`; None for any other name."""
    key, slash, file = name.partition("/")
    known = file in (STACK_NAME, "bandwidth.json") or _PROBLEM.fullmatch(file)
    if slash and _KEY.fullmatch(key) and (known or _PEAK.fullmatch(file)):
        return key, file
    return None


def parse_stored(name: str, data: bytes) -> Stored:
    """Read and check one file of a store.

    Args:
        name: `<key of the stack>/<file>`.

    Raises:
        ArtifactError: it is damaged, too large, or not what its name says.
    """
    parts = split_name(name)
    if parts is None:
        raise ArtifactError(f"{name}: no file of a store is called so")
    content = _json(name, data)
    key, file = parts
    if file == STACK_NAME:
        stack = StackFile.from_content(content, name)
        if stack.key != key:
            raise ArtifactError(f"{name}: is of stack {stack.key}")
        return stack
    if file == "bandwidth.json":
        return BandwidthFile.from_content(content, name)
    if peak := _PEAK.fullmatch(file):
        found = PeakFile.from_content(content, name)
        if found.type != peak[1]:
            raise ArtifactError(f"{name}: is of type {found.type}")
        return found
    return _times(name, file, Times.from_content(content, name))


def _json(name: str, data: bytes) -> object:
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name}: has {len(data)} bytes, more than {MAX_BYTES}")

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name}: not JSON: {error}") from error


def _times(name: str, file: str, times: Times) -> Times:
    problem = Problem.from_json(times.problem)
    if f"{problem.key}.json" != file:
        raise ArtifactError(f"{name}: is of problem {problem.key}")
    names = [candidate for candidate, _ in times.candidates]
    if names and names[0] != DEFAULT:
        raise ArtifactError(f"{name}: the first candidate is {names[0]!r}, wanted {DEFAULT!r}")
    strange = [candidate for candidate in names if not _CANDIDATE.fullmatch(candidate)]
    if strange or len(set(names)) != len(names):
        raise ArtifactError(f"{name}: no names of candidates: {strange[:1] or 'two are equal'}")
    if not names and times.pruned is not None:
        raise ArtifactError(f"{name}: is pruned without a time of the default")
    return times


@dataclass
class StoredStack:
    """The files of one stack.

    Attributes:
        damaged: why files could not be read.
        size: bytes of all files together.
        modified: `st_mtime` by problem's key, for files that do not say when they were measured.
    """

    directory: Path
    stack: StackFile
    times: dict[str, Times] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    gb_per_s: float | None = None
    damaged: list[str] = field(default_factory=list)
    size: int = 0
    modified: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name of the stack's directory."""
        return self.directory.name


def stored_names(root: Path, key: str) -> list[str]:
    """The files of a stack as `<key>/<file>`, sorted; what a writer is busy with left out."""
    found = (f"{key}/{path.name}" for path in (root / key).iterdir())
    return sorted(name for name in found if split_name(name) is not None)


def stack_keys(root: Path) -> list[str]:
    """The stacks of a store, sorted.

    Raises:
        ArtifactError: there is no such directory.
    """
    if not root.is_dir():
        raise ArtifactError(f"{root}: there is no store")
    return sorted(
        path.name for path in root.iterdir() if path.is_dir() and _KEY.fullmatch(path.name)
    )


def read_stacks(root: Path) -> Iterator[StoredStack]:
    """Every stack of a store with all that is readable of it.

    Raises:
        ArtifactError: there is no store, or a stack does not say what it is.
    """
    for key in stack_keys(root):
        head = parse_stored(f"{key}/{STACK_NAME}", read_bytes(root / key / STACK_NAME))
        assert isinstance(head, StackFile)
        stack = StoredStack(root / key, head)
        for name in stored_names(root, key):
            _add(stack, root, name)
        yield stack


def _add(stack: StoredStack, root: Path, name: str) -> None:
    path = root / name
    try:
        data = read_bytes(path)
        found = parse_stored(name, data)
    except ArtifactError as error:
        stack.damaged.append(str(error))
        return
    stack.size += len(data)
    match found:
        case Times():
            key = path.name.partition(".")[0]
            stack.times[key], stack.modified[key] = found, path.stat().st_mtime
        case PeakFile():
            stack.peaks[found.type] = found.tflops
        case BandwidthFile():
            stack.gb_per_s = found.gb_per_s


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of a store.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror}") from error
