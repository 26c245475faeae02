"""Which text files a pattern in the configuration means."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from primus.files import canonical_json, sha256_file

# Snakemake's `--max-checksum-file-size`; and how much may be read before anything runs.
_SMALL, _READ = 1_000_000, 32_000_000
_TEXT = (".txt", ".jsonl")
_PACKED = ("", ".gz", ".zst")
SUFFIXES = tuple(kind + packing for kind in _TEXT for packing in _PACKED)


def matching(patterns: Iterable[str], root: Path) -> list[str]:
    """Every file that any pattern matches, sorted, once each; relative patterns give relative
    paths.

    Args:
        root: directory against which relative patterns are read.
    """
    found: set[str] = set()
    for pattern in patterns:
        # The pattern itself, too: a file's own name may look like one.
        names = [pattern, *glob.glob(pattern, root_dir=root, recursive=True)]
        # Not Path.is_file: that raises for a name longer than any file's.
        found.update(name for name in names if os.path.isfile(root / name))
    return sorted(found)


def below(directory: str, root: Path) -> list[str]:
    """Every file in a directory and those in it, as `matching`."""
    return matching([f"{glob.escape(directory)}/**"], root)


def state(names: Iterable[str], root: Path) -> str:
    """How many files, their bytes, and a hash that is another one when one of them was replaced.

    Snakemake sees a file that is newer than what was made from it. One that `cp -p`, `rsync -a` or
    a link put in the place of another is older. What Snakemake itself compares by its content is
    read here, too, so that a mere `touch` changes nothing; of larger ones size and time count.

    Args:
        root: directory against which relative names are read.
    """
    sizes, total, small, digest = {}, 0, 0, hashlib.sha256()
    for name in names:
        sizes[name] = found = os.stat(root / name)
        total += found.st_size
        small += found.st_size if found.st_size <= _SMALL else 0
    for name, found in sorted(sizes.items()):
        told: list[object] = [name, found.st_size]
        if found.st_size > _SMALL:
            told.append(found.st_mtime_ns)
        elif small <= _READ:
            told.append(sha256_file(root / name))
        digest.update(canonical_json(told).encode())
    return f"{len(sizes)} files, {total} bytes, {digest.hexdigest()[:12]}" if sizes else ""


def mistakes(pattern: str, root: Path, must_exist: bool) -> Iterator[tuple[str, str]]:
    """Why a pattern cannot be used, and the fix.

    Args:
        must_exist: whether a stage is to read the files now.
    """
    if ".." in Path(pattern).parts:
        yield "climbs out of the root by '..'", "write the absolute path"
        return
    if not must_exist:
        return
    names = matching([pattern], root)
    if not names:
        yield "matches no file", "name an existing file; relative paths start at the root"
    for name in names:
        if not name.endswith(SUFFIXES):
            yield f"matches {name}, which is no known kind of text", f"known: {', '.join(SUFFIXES)}"
        elif "{" in name or "}" in name:
            # Snakemake takes braces in the path of an input for a wildcard.
            yield f"matches {name}, which has a brace in its name", "rename the file"
