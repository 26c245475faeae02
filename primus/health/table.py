"""The nodes of a job and what was measured on them, as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from primus.artifacts.preflight import Preflight

_HEAD = ("node", "verdict", "TFLOP/s", "inside GB/s", "between GB/s", "disk MB/s", "clock s")


def table(found: Preflight) -> list[str]:
    """One line per node, below one line of heads; what is not known is a dash."""
    rows = [_HEAD, *(_row(found, node, host) for node, host in enumerate(found.hosts))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(found: Preflight, node: int, host: str) -> tuple[str, ...]:
    severities = {finding.severity for finding in found.findings if finding.node == host}
    verdict = "broken" if "broken" in severities else "slow" if severities else "ok"
    links = [link for link in found.links if node in link.nodes]
    disks = (n.directory.write_mb_s for n in found.nodes if n.node == node)
    clocks = [(clock.low + clock.high) / 2 for clock in found.clocks if clock.node == node]
    return (
        host,
        verdict,
        _least(rank.tflops for rank in found.ranks if rank.node == node),
        _most(link.gb_per_second for link in links if len(link.nodes) == 1),
        _most(link.gb_per_second for link in links if len(link.nodes) == 2),
        _most(disks),
        f"{statistics.fmean(clocks):+.3f}" if clocks else "-",
    )


def _least(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.4g}" if known else "-"


def _most(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.3g}" if known else "-"
