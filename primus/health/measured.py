"""What is known of a job's nodes, and what a training asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primus.artifacts.preflight import ClockReport, LinkReport, NodeReport, RankReport, Severity


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the training asks of each node.

    Attributes:
        device_memory_gib, peak_tflops: of a device by the hardware file; None: not known.
        rank_memory_gib: what a rank takes by the plan.
        disk_gib: what the run will write beside what it keeps already.
        gemm_fraction, bandwidth_fraction, min_…: the keys of `preflight`.
    """

    ranks_per_node: int
    cpu: bool
    device_memory_gib: float | None
    rank_memory_gib: float
    disk_gib: float
    peak_tflops: float | None
    gemm_fraction: float
    bandwidth_fraction: float
    min_bandwidth_inside: float | None
    min_bandwidth_between: float | None
    min_disk_mb: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the nodes and ranks have said.

    Attributes:
        hosts: names of all nodes, by number.
        unseen: numbers of nodes whose mark the node that started the job does not see.
        ranks: None: none was started.
        finished: the first rank has collected what the others found.
        ended: the first rank that ended badly: the name of its node, and how it ended.
        seconds: the time limit, for messages.
    """

    hosts: Sequence[str]
    nodes: Sequence[NodeReport] = ()
    unseen: Sequence[int] = ()
    clocks: Sequence[ClockReport] = ()
    ranks: Sequence[RankReport] | None = None
    links: Sequence[LinkReport] = ()
    finished: bool = True
    ended: tuple[str, str] | None = None
    seconds: float = 0.0


_TELL = "leave it out (slurm: {exclude: %s}) and tell those who run the cluster"


def tell(host: str) -> str:
    """What to do with a node that nobody here can mend."""
    return _TELL % host


def broken_or_slow(value: float, reference: float, fraction: float) -> Severity | None:
    """How bad a value below its reference is: the key's share, and halfway from it to 1."""
    if value < fraction * reference:
        return "broken"
    return "slow" if value < (1 + fraction) / 2 * reference else None
