"""Which nodes' links are slow or broken, by all-reduces inside nodes and between pairs of them.

A pair is as fast as the slower of its two. A healthy node meets another healthy one in some round,
so each node is judged by its best pair: one that is slow with everybody is slow itself.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from primus.artifacts.preflight import Finding, LinkReport
from primus.health.measured import Measured, Needs, broken_or_slow, tell


def of_links(seen: Measured, needs: Needs) -> Iterator[Finding]:
    """What is wrong with the links inside nodes and between them."""
    alone = [link for link in seen.links if len(link.nodes) == 1]
    pairs = [link for link in seen.links if len(link.nodes) == 2]
    share = needs.bandwidth_fraction
    yield from _judged(seen.hosts, alone, "inside", share, needs.min_bandwidth_inside)
    yield from _judged(seen.hosts, pairs, "between", share, needs.min_bandwidth_between)


def _judged(
    hosts: Sequence[str],
    links: Sequence[LinkReport],
    where: str,
    fraction: float,
    least: float | None,
) -> Iterator[Finding]:
    best = _best(links)
    dead = [node for node, speed in best.items() if speed == 0]
    for node in dead:
        yield _broken(hosts, node, where, [link for link in links if node in link.nodes])
    left = [link for link in links if not set(link.nodes) & set(dead)]
    yield from _single(hosts, left, where)
    alive = {node: speed for node, speed in best.items() if speed > 0}
    yield from _slow(hosts, alive, where, fraction, least)


def _best(links: Sequence[LinkReport]) -> dict[int, float]:
    """Bandwidth of each node's fastest link; 0 where none came through."""
    best: dict[int, float] = {}
    for link in links:
        for node in link.nodes:
            best[node] = max(best.get(node, 0.0), link.gb_per_second or 0.0)
    return best


def _broken(hosts: Sequence[str], node: int, where: str, links: Sequence[LinkReport]) -> Finding:
    others = sorted({other for link in links for other in link.nodes} - {node})
    partners = f" with {', '.join(hosts[other] for other in others)}" if others else ""
    return Finding(
        node=hosts[node],
        check=f"all-reduce {where}",
        severity="broken",
        measured=f"none came through{partners}: {links[0].error}",
        needed="one that does",
        fix=f"see whether the network interface is the right one (env: NCCL_SOCKET_IFNAME, "
        f"GLOO_SOCKET_IFNAME), or {tell(hosts[node])}",
    )


def _single(hosts: Sequence[str], links: Sequence[LinkReport], where: str) -> Iterator[Finding]:
    """Pairs that fail though each of the two reaches others; the one with more of them is named."""
    failed = [link for link in links if link.gb_per_second is None]
    often = Counter(node for link in failed for node in link.nodes)
    for link in failed:
        worst = max(link.nodes, key=lambda node: (often[node], node))
        yield _broken(hosts, worst, where, [link])


def _slow(
    hosts: Sequence[str],
    best: Mapping[int, float],
    where: str,
    fraction: float,
    least: float | None,
) -> Iterator[Finding]:
    if not best:
        return
    usual = statistics.median(best.values())
    for node, speed in best.items():
        severity = broken_or_slow(speed, usual, fraction)
        share = fraction if severity == "broken" else (1 + fraction) / 2
        needed = f"{share:.0%} of the median of the nodes, {usual:.3g}"
        if least is not None and speed < least:
            severity, needed = "broken", f"{least:.3g}"
        if severity is not None:
            yield Finding(
                node=hosts[node],
                check=f"all-reduce {where}",
                severity=severity,
                measured=f"{speed:.3g} GB/s",
                needed=needed,
                fix=tell(hosts[node]),
            )
