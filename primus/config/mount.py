"""A directory of the host that a container sees, as `container.mounts` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

# Separators in the runtimes' own notations, none of which can escape them.
FORBIDDEN = frozenset(':,"\n\r\0')


@dataclass(frozen=True, order=True)
class Mount:
    """A file or directory of the host, and where the container sees it.

    Attributes:
        required: a node on which it is missing is a mistake; otherwise it is left out there.
    """

    source: str
    target: str
    readonly: bool = False
    required: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `SOURCE`, `SOURCE:TARGET` or `SOURCE:TARGET:ro`.

        Raises:
            ValueError: says what is wrong with it.
        """
        source, *rest = text.split(":")
        target = rest[0] if rest else source
        if len(rest) > 2 or (len(rest) == 2 and rest[1] not in ("ro", "rw")):
            raise ValueError(f"{text!r} is not SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro")
        for path in (source, target):
            if not path.startswith("/"):
                raise ValueError(f"{path!r} is not an absolute path")
            if FORBIDDEN & set(path) or ".." in Path(path).parts:
                raise ValueError(f"{path!r} holds a comma, a quotation mark, a line end or '..'")
        return cls(source, target, readonly=rest[1:] == ["ro"])
