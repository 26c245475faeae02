"""What the nodes say of themselves: who is silent, disks, clocks, memory, drivers, software."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

from primus.artifacts.preflight import Disk, Finding, NodeReport
from primus.health.measured import Measured, Needs, tell

# Certificates, and times of files by which stages decide what is new.
CLOCK_SECONDS = 1.0
_TEMPORARY_GIB = 0.25


def of_nodes(seen: Measured, needs: Needs) -> Iterator[Finding]:
    """What is wrong before any rank has started."""
    yield from _silent(seen)
    yield from _disks(seen, needs)
    yield from _shared(seen)
    yield from _clocks(seen)
    yield from _memory(seen, needs)
    yield from _faults(seen)
    for name in ("python", "commit"):
        yield from differing("software", name, {n.host: getattr(n, name) for n in seen.nodes})


def _silent(seen: Measured) -> Iterator[Finding]:
    answered = {report.node for report in seen.nodes}
    for number, host in enumerate(seen.hosts):
        if number not in answered:
            yield Finding(
                node=host,
                check="roll call",
                severity="broken",
                measured="no answer",
                needed=f"one within {seen.seconds:.0f} s",
                fix=tell(host),
            )


def _disks(seen: Measured, needs: Needs) -> Iterator[Finding]:
    speeds = [n.directory.write_mb_s for n in seen.nodes if n.directory.write_mb_s is not None]
    usual = statistics.median(speeds) if speeds else 0.0
    for node in seen.nodes:
        yield from _disk(node, node.directory, "disk", needs.disk_gib)
        yield from _disk(node, node.temporary, "TMPDIR", _TEMPORARY_GIB)
        speed = node.directory.write_mb_s
        if speed is None:
            continue
        asked = needs.min_disk_mb
        severity = "broken" if asked is not None and speed < asked else None
        # Others write at the same time, so that a share of the usual speed condemns nobody.
        if severity is None and speed < 0.25 * usual:
            severity, asked = "slow", 0.25 * usual
        if severity is not None:
            yield Finding(
                node=node.host,
                check="disk",
                severity="broken" if severity == "broken" else "slow",
                measured=f"writes {speed:.3g} MB/s",
                needed=f"{asked:.3g} MB/s",
                fix=tell(node.host),
            )


def _disk(node: NodeReport, disk: Disk, check: str, gib: float) -> Iterator[Finding]:
    if disk.error:
        yield Finding(
            node=node.host,
            check=check,
            severity="broken",
            measured=disk.error,
            needed="a directory that can be written",
            fix=f"give it access, or {tell(node.host)}",
        )
    elif disk.free_gib is not None and disk.free_gib < gib:
        what = "checkpoints; keep_last limits them" if check == "disk" else "compiled kernels"
        yield Finding(
            node=node.host,
            check=check,
            severity="broken",
            measured=f"{disk.free_gib:.3g} GiB are free",
            needed=f"{gib:.3g} GiB for {what}",
            fix="make room",
        )


def _shared(seen: Measured) -> Iterator[Finding]:
    """Nodes that do not read or write the directory that the first one does."""
    usable = [node for node in seen.nodes if not node.directory.error]
    apart = [node for node in usable if not node.sees or node.node in seen.unseen]
    others = [node for node in usable if node.node]
    first = next((node for node in usable if node.node == 0), None)
    if len(others) > 1 and first is not None and len([n for n in apart if n.node]) == len(others):
        apart = [first]
    for node in apart:
        yield Finding(
            node=node.host,
            check="shared directory",
            severity="broken",
            measured="it and the other nodes do not see each other's files there",
            needed="one file system on all nodes",
            fix=f"put output/ on one that is shared, or {tell(node.host)}",
        )


def _clocks(seen: Measured) -> Iterator[Finding]:
    names = dict(enumerate(seen.hosts))
    if not seen.clocks:
        return
    # Against the median: the clock that asked may be the one that is wrong.
    usual = statistics.median((clock.low + clock.high) / 2 for clock in seen.clocks)
    for clock in seen.clocks:
        low, high = clock.low - usual, clock.high - usual
        if low > CLOCK_SECONDS or high < -CLOCK_SECONDS:
            yield Finding(
                node=names.get(clock.node, str(clock.node)),
                check="clock",
                severity="broken",
                measured=f"{(low + high) / 2:+.1f} s from the others",
                needed=f"less than {CLOCK_SECONDS:g} s",
                fix="have its clock set (chrony, ntpd)",
            )


def _memory(seen: Measured, needs: Needs) -> Iterator[Finding]:
    need = needs.rank_memory_gib * needs.ranks_per_node if needs.cpu else 0.0
    for node in seen.nodes:
        if node.memory_available_gib < need:
            yield Finding(
                node=node.host,
                check="memory",
                severity="broken",
                measured=f"{node.memory_available_gib:.3g} GiB are available",
                needed=f"{need:.3g} GiB for {needs.ranks_per_node} ranks",
                fix="end what else runs there, or take more nodes",
            )
        if node.load > node.cores:
            yield Finding(
                node=node.host,
                check="load",
                severity="slow",
                measured=f"{node.load:.1f} processes run before the ranks do",
                needed=f"fewer than its {node.cores} cores",
                fix="end what else runs there",
            )


def _faults(seen: Measured) -> Iterator[Finding]:
    for node in seen.nodes:
        for fault in node.faults:
            yield Finding(
                node=node.host,
                check="GPU",
                severity=fault.severity,
                measured=fault.text,
                needed="none",
                fix=f"have the GPU reset, or {tell(node.host)}",
            )


def differing(check: str, name: str, values: dict[str, str]) -> Iterator[Finding]:
    """Nodes whose value is not the one that most have; of equally many the first node's."""
    if not values:
        return
    usual = Counter(values.values()).most_common(1)[0][0]
    for host, value in values.items():
        if value != usual:
            yield Finding(
                node=host,
                check=check,
                severity="broken",
                measured=f"{name} {value}",
                needed=f"{usual} as on the other nodes",
                fix="make them equal",
            )
