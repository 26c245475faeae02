"""Groups of settings as dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested groups as pairs of a dotted key and its value; an empty group is a value."""
    rows: list[tuple[str, Any]] = []
    for name, value in group.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
