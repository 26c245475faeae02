"""Numbers, times and sizes as people read them."""

from __future__ import annotations

import json
import time
from typing import Any

MISSING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits with thousands separators: 12,345 or 0.01234 or 1.2e-05."""
    if value is None:
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:,.{digits}g}"


def scaled(value: float | None, unit: str = "") -> str:
    """With a decimal prefix: 1.23 M, 4.56 G."""
    if value is None:
        return MISSING
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            size = 1e3 if prefix == "k" else limit
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{number(value)} {unit}".strip()


def size(value: float) -> str:
    """Bytes with a binary prefix."""
    for prefix in ("", "Ki", "Mi", "Gi", "Ti"):
        if abs(value) < 1024 or prefix == "Ti":
            break
        value /= 1024
    return f"{value:.0f} B" if not prefix else f"{value:.3g} {prefix}B"


def seconds(value: float | None) -> str:
    """A duration: 850 ms, 42.3 s, 5 min 03 s, 2 h 14 min, 3 d 4 h."""
    if value is None:
        return MISSING
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    for one, larger, smaller in ((86400, "d", "h"), (3600, "h", "min"), (60, "min", "s")):
        if whole >= one:
            step = {"h": 3600, "min": 60, "s": 1}[smaller]
            return f"{whole // one} {larger} {whole % one // step:02d} {smaller}"
    return f"{whole} s"


def share(value: float | None) -> str:
    """A fraction as a percentage."""
    return MISSING if value is None else f"{value * 100:.3g} %"


def microseconds(value: float | None) -> str:
    """Microseconds in the unit that fits."""
    if value is None:
        return MISSING
    if value >= 1e6:
        return f"{value / 1e6:.3g} s"
    return f"{value / 1e3:.3g} ms" if value >= 1e3 else f"{value:.3g} µs"


def moment(value: float | None) -> str:
    """Seconds since the epoch as UTC, to the second."""
    if value is None:
        return MISSING
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value))


def setting(value: Any) -> str:
    """A setting's value as it would stand in YAML's flow style."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


FILTERS = {
    "number": number,
    "scaled": scaled,
    "size": size,
    "seconds": seconds,
    "share": share,
    "microseconds": microseconds,
    "moment": moment,
    "setting": setting,
}
