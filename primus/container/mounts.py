"""What of the host's files a container sees: at the same path as outside, unless said otherwise."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from primus.config.mount import FORBIDDEN, Mount
from primus.errors import UnavailableError


def mounts_of(
    values: Mapping[str, Any], extra: Iterable[str], paths: Sequence[Path]
) -> list[Mount]:
    """Everything that a stage with these settings needs of the host.

    The repository, the working directory with its output, the directory for temporary files, the
    Hugging Face cache, and every file that a setting or `paths` names; also where symbolic links
    in these lead. Outermost directories only.

    Args:
        values: of the frozen settings. extra: `container.mounts`.

    Raises:
        UnavailableError: a path holds a character that the runtimes cannot mount.
    """
    here = Path.cwd()
    home = os.environ.get("HF_HOME")
    wanted = [
        Path(__file__).resolve().parents[2],
        *(here, here / "output", Path(tempfile.gettempdir())),
        *((Path(home),) if home else ()),
        *(here / text for text in _texts(values) if "/" in text),
        *paths,
        # A model in the Hugging Face cache is a directory of links.
        *(entry for path in paths if path.is_dir() for entry in path.iterdir()),
    ]
    found = {_directory(version) for path in wanted for version in _versions(path)}
    outermost = [str(path) for path in sorted(found) if not _covered(path, found)]
    same = [Mount(path, path, required=False) for path in outermost]
    for mount in same:
        if FORBIDDEN & set(mount.source):
            raise UnavailableError(
                f"{mount.source!r}: cannot be mounted into a container, because of a comma, colon, "
                "quotation mark or line end in its name. Fix: use a path without"
            )
    return [*same, *(Mount.parse(text) for text in extra)]


def _texts(values: Mapping[str, Any]) -> Iterator[str]:
    """Every text among the settings but those that speak of the inside of the container."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name not in ("env", "container"):
                yield from _texts(value)
        else:
            items = value if isinstance(value, list | tuple) else [value]
            yield from (item for item in items if isinstance(item, str))


def _versions(path: Path) -> Iterator[Path]:
    """The path as written and where it leads; nothing where it does not exist."""
    if path.exists():
        yield Path(os.path.abspath(path))
        yield path.resolve()


def _directory(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _covered(path: Path, others: Iterable[Path]) -> bool:
    return path == Path("/") or any(other in path.parents for other in others if other != Path("/"))
