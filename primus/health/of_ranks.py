"""What the ranks found of their devices: gone, taken, wrong, slow."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator

from primus.artifacts.preflight import Finding, RankReport
from primus.health.measured import Measured, Needs, broken_or_slow, tell
from primus.health.of_nodes import differing

# What a rank does, in this order; the first is set before torch is imported, the last when all is
# measured.
STAGES = ("started", "device", "product", "gemm", "inside", "between", "done")
# Of the memory that the hardware file names: drivers keep a little.
_MEMORY_SHARE = 0.97
# What a rank's own context takes at most.
_CONTEXT_GIB = 2.0


def of_ranks(seen: Measured, needs: Needs) -> Iterator[Finding]:
    """What is wrong with the ranks and their devices; nothing where none was started."""
    if seen.ranks is None:
        return
    yield from _ended(seen, needs)
    yield from _devices(seen, needs)
    yield from _ranks_differ(seen)
    yield from _products(seen)
    yield from _gemm(seen, needs)


def _ended(seen: Measured, needs: Needs) -> Iterator[Finding]:
    """Ranks that ended, hang, or never came; of those that wait for others nobody is named."""
    ranks = seen.ranks or ()
    if seen.ended is not None and not seen.finished:
        yield _finding(seen.ended[0], seen.ended[1], "ranks that run")
        return
    places = {rank.rank: STAGES.index(rank.stage) for rank in ranks if not rank.error}
    world = needs.ranks_per_node * len(seen.hosts)
    places |= {number: -1 for number in range(world) if number not in {r.rank for r in ranks}}
    waiting = [place for place in places.values() if place < len(STAGES) - 1]
    if not waiting:
        return
    first = len(STAGES) - 2 if seen.finished else min(waiting)
    for node, host in enumerate(seen.hosts):
        own = range(node * needs.ranks_per_node, (node + 1) * needs.ranks_per_node)
        late = [number for number in own if places.get(number, len(STAGES)) <= first]
        if late:
            place, local = places[late[0]], late[0] - own.start
            did = f"did not get beyond {STAGES[place]!r}" if place >= 0 else "has not started"
            yield _finding(host, f"rank {local} {did}", f"all checks within {seen.seconds:.0f} s")


def _devices(seen: Measured, needs: Needs) -> Iterator[Finding]:
    for host, ranks in _by_host(seen.ranks or ()).items():
        wrong = next(filter(None, (_device(rank, needs) for rank in ranks)), None)
        if wrong is not None:
            yield _finding(host, *wrong)


def _device(rank: RankReport, needs: Needs) -> tuple[str, str] | None:
    """What is wrong with a rank's device, and what is needed."""
    where = f"rank {rank.local_rank}: "
    if rank.error:
        return where + rank.error, "no failure"
    if rank.memory_gib is None or rank.free_gib is None:
        return None
    asked = needs.device_memory_gib
    if asked is not None and rank.memory_gib < _MEMORY_SHARE * asked:
        return f"{where}{rank.memory_gib:.1f} GiB of memory", f"{asked:g} GiB"
    taken = rank.memory_gib - rank.free_gib
    if taken > _CONTEXT_GIB:
        return f"{where}{taken:.1f} GiB of its memory are taken", "what nobody else uses"
    return None


def _finding(host: str, measured: str, needed: str) -> Finding:
    return Finding(
        node=host,
        check="device",
        severity="broken",
        measured=measured,
        needed=needed,
        fix=f"end what else runs there, or {tell(host)}",
    )


def _ranks_differ(seen: Measured) -> Iterator[Finding]:
    done = [rank for rank in seen.ranks or () if rank.software]
    for name in sorted({key for rank in done for key in rank.software}):
        values = {rank.host: rank.software.get(name, "none") for rank in done}
        yield from differing("software", name, values)
    for name in sorted({key for rank in done for key in rank.variables}):
        values = {rank.host: rank.variables.get(name, "not set") for rank in done}
        yield from differing("environment", name, values)
    values = {rank.host: rank.device for rank in done if rank.memory_gib is not None}
    yield from differing("GPU", "kind", values)


def _products(seen: Measured) -> Iterator[Finding]:
    """Devices that compute other bits than those of the same kind."""
    kinds: dict[tuple[str, str], list[RankReport]] = {}
    for rank in seen.ranks or ():
        if rank.product:
            kinds.setdefault((rank.device, rank.software.get("torch", "")), []).append(rank)
    for ranks in kinds.values():
        usual = Counter(rank.product for rank in ranks if rank.repeatable).most_common(1)
        for host, several in _by_host(ranks).items():
            wrong = [r for r in several if not r.repeatable or r.product != usual[0][0]]
            if wrong:
                yield Finding(
                    node=host,
                    check="product",
                    severity="broken",
                    measured=f"the device of rank {wrong[0].local_rank} computes other bits",
                    needed=f"the same as other {wrong[0].device}",
                    fix=tell(host),
                )


def _gemm(seen: Measured, needs: Needs) -> Iterator[Finding]:
    measured = [rank for rank in seen.ranks or () if rank.tflops is not None]
    if not measured:
        return
    given = needs.peak_tflops
    usual = given or statistics.median(_speed(rank) for rank in measured)
    of = "peak_tflops" if given else "the median"
    for host, ranks in _by_host(measured).items():
        worst = min(ranks, key=_speed)
        severity = broken_or_slow(_speed(worst), usual, needs.gemm_fraction)
        if severity is not None:
            share = needs.gemm_fraction if severity == "broken" else (1 + needs.gemm_fraction) / 2
            yield Finding(
                node=host,
                check="gemm",
                severity=severity,
                measured=f"rank {worst.local_rank} reaches {_speed(worst):.4g} TFLOP/s",
                needed=f"{share:.0%} of {of}, {usual:.4g}",
                fix=tell(host) if not given else f"{tell(host)}, or correct peak_tflops",
            )


def _speed(rank: RankReport) -> float:
    return rank.tflops or 0.0


def _by_host(ranks: Iterable[RankReport]) -> dict[str, list[RankReport]]:
    found: dict[str, list[RankReport]] = {}
    for rank in ranks:
        found.setdefault(rank.host, []).append(rank)
    return found
