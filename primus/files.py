"""Writing files so that a reader sees all of the new or all of the old, and hashing them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from blake3 import blake3

from primus.errors import UnavailableError

# Of what is read to be hashed: it stays in a processor's cache.
_CHUNK = 512 << 10

T = TypeVar("T")


@contextmanager
def atomic_write(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success fsync it and rename it into place.

    On an exception the temporary file is removed and `path` is left as it was.

    Args:
        path: where the content goes; its parent directories are made.
        mode: "w" (UTF-8 text) or "wb".
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        os.fchmod(handle, 0o666 & ~umask())
        with os.fdopen(handle, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


def umask() -> int:
    """The process's umask."""
    # Asking by os.umask would change it for a moment, for every thread.
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        return next(int(line.split()[1], 8) for line in stream if line.startswith("Umask:"))


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_directory(finished: Path, directory: Path, superseded: Callable[[str], bool]) -> None:
    """Rename `finished` to `directory`, on the disk; what others put into the old one moves along.

    The old one is set aside meanwhile, as a hidden directory; one that was left so by a process
    that was killed counts as the old one.

    Args:
        finished: gets whatever the old one has besides.
        superseded: whether what has this name in the old one is dropped, although `finished` has
            nothing of the name.
    """
    aside = directory.with_name(f".{directory.name}.old")
    if aside.exists() and not directory.exists():
        os.rename(aside, directory)
    shutil.rmtree(aside, ignore_errors=True)
    mine = {path.name for path in finished.iterdir()}
    for path in sorted(directory.iterdir()) if directory.exists() else []:
        if path.name not in mine and not superseded(path.name):
            _link(path, finished / path.name)
    for path in finished.iterdir():
        if path.name in mine:
            os.chmod(path, 0o666 & ~umask())
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
    fsync_directory(finished)
    if directory.exists():
        os.rename(directory, aside)
    os.rename(finished, directory)
    fsync_directory(directory.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for path in source.iterdir():
            _link(path, target / path.name)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def is_older(path: Path, others: Iterable[Path]) -> bool:
    """Whether something was changed after `path` was made; not so where `path` is not there."""
    if not path.exists():
        return False
    made = path.stat().st_mtime_ns
    return any(other.stat().st_mtime_ns > made for other in others if other.exists())


def require_writable(directory: Path) -> None:
    """Look whether files can be made in a directory, or where it will be made; makes nothing.

    Raises:
        UnavailableError: they cannot; the first directory that refuses is named.
    """
    found = directory.absolute()
    while not os.path.lexists(found):
        found = found.parent
    if not found.is_dir():
        why = "is no directory"
    elif not os.access(found, os.W_OK | os.X_OK):
        why = "cannot be written to"
    else:
        return
    raise UnavailableError(
        f"{found}: {why}. Fix: make it writable, or start in a directory that is"
    )


def tail(path: Path | str, size: int) -> bytes:
    """The last `size` bytes of a file, or all of it.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
        return stream.read()


def last_parsed(path: Path | str, size: int, parse: Callable[[bytes], T | None]) -> T | None:
    """What `parse` makes of the last line that it takes: a torn one at the end is being written.

    Args:
        size: bytes at the end of the file in which the line lies.
        parse: raises ValueError, or gives None, for a line that does not count.

    Returns:
        None where there is no such line, or no file.
    """
    try:
        lines = tail(path, size).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = parse(line)
        except ValueError:
            continue
        if found is not None:
            return found
    return None


def read_json(path: Path | str) -> Any:
    """The content of a JSON file that this process may not have written.

    Raises:
        OSError: it cannot be read.
        ValueError: as `parse_json`.
    """
    return parse_json(Path(path).read_bytes())


def parse_json(text: str | bytes) -> Any:
    """The content of JSON from outside.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested beyond what Python can follow, or holds half
            of a surrogate pair, which no file can take again.
    """
    said = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        content = json.loads(said)
        if "\\ud" in said.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex SHA-256 of `text` in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of the file's bytes, read in chunks."""
    return _hashed(path, hashlib.sha256())


def blake3_file(path: Path | str) -> str:
    """Hex BLAKE3 of the file's bytes, read in chunks."""
    return _hashed(path, blake3())


def _hashed(path: Path | str, digest: Any) -> str:
    window = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(window):
            digest.update(window[:count])
    return str(digest.hexdigest())
