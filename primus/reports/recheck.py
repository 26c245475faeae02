"""Holding the figures that a page was written with against those that its inputs give now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def differences(stored: Any, again: Any, who: str, where: str = "") -> Iterator[str]:
    """What differs in two nests of figures, in words; floats differ from 1e-9 of them on.

    Args:
        who: says the stored ones, such as "the report".
        where: names of the figures above, with dots.
    """
    if isinstance(stored, dict) and isinstance(again, dict):
        for name in sorted(stored.keys() | again.keys()):
            inner = f"{where}.{name}".strip(".")
            yield from differences(stored.get(name), again.get(name), who, inner)
    elif stored != again and not _close(stored, again):
        yield f"{where}: {who} says {stored}, its inputs give {again}"


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-9):
        return True
    # JSON has no word for what is no number: null is read back.
    return all(one is None or (isinstance(one, float) and math.isnan(one)) for one in (a, b))
