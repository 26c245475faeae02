"""What was found of the nodes before each attempt, where they were checked."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from primus.artifacts.preflight import Finding, Preflight
from primus.artifacts.report import Check, Outcome
from primus.reports.formats import MISSING, seconds
from primus.reports.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node as it was measured; a dash where it was not."""

    host: str
    verdict: str
    tflops: str
    inside: str
    between: str
    disk: str
    clock: str


def verdict(found: Preflight) -> str:
    """Preflight's, in a word."""
    if found.broken or not found.finished:
        return "broken"
    return "slow" if found.findings else "ok"


def node_rows(found: Preflight) -> list[NodeRow]:
    """By the job's order of nodes."""
    return [_row(found, node, host) for node, host in enumerate(found.hosts)]


def _row(found: Preflight, node: int, host: str) -> NodeRow:
    severities = {finding.severity for finding in found.findings if finding.node == host}
    links = [link for link in found.links if node in link.nodes]
    disks = (one.directory.write_mb_s for one in found.nodes if one.node == node)
    clocks = [(clock.low + clock.high) / 2 for clock in found.clocks if clock.node == node]
    return NodeRow(
        host=host,
        verdict="broken" if "broken" in severities else "slow" if severities else "ok",
        tflops=_of(min, (rank.tflops for rank in found.ranks if rank.node == node)),
        inside=_of(max, (link.gb_per_second for link in links if len(link.nodes) == 1)),
        between=_of(max, (link.gb_per_second for link in links if len(link.nodes) == 2)),
        disk=_of(max, disks),
        clock=f"{statistics.fmean(clocks):+.3f} s" if clocks else MISSING,
    )


def _of(choose: Callable[[list[float]], float], values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{choose(known):.4g}" if known else MISSING


def nodes_checked(inputs: Inputs) -> Iterator[Check]:
    """The verdict on the nodes of the last attempt that checked them, where one did."""
    if not inputs.preflights:
        return
    number, found = max(inputs.preflights.items())
    hosts = f"{len(found.hosts)} {'node' if len(found.hosts) == 1 else 'nodes'}"
    outcome: Outcome = "ok" if verdict(found) == "ok" else "warning"
    said = "; ".join(_short(finding) for finding in found.findings[:3]) or "nothing found"
    took = f"{hosts} before attempt {number}, in {seconds(found.seconds)}"
    yield Check(name="Preflight", outcome=outcome, detail=f"{said}; {took}")


def _short(finding: Finding) -> str:
    return f"{finding.node} {finding.severity}: {finding.check}, {finding.measured}"
