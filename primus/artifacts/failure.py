"""Why the ranks of an attempt ended: one record per node, `logs/node000/failure.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import Manifest


class RankEnd(BaseModel):
    """A rank that ended badly.

    Attributes:
        rank, local_rank: of all ranks, and of those on its node.
        status: its exit status; None where a signal ended it.
        signal: the name of the signal, such as SIGSEGV.
        time: when its end was seen, in seconds since the epoch, by its node's clock.
        out_of_memory: the kernel killed it for lack of memory, or it said that it got none.
        follows: it complained of a lost connection: its end is a consequence of another's.
        lines: the last that it wrote to stderr.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int
    local_rank: int
    status: int | None
    signal: str | None
    time: float
    out_of_memory: bool
    follows: bool
    lines: list[str]


class Failure(Manifest):
    """What a node's agent saw of a failure.

    Attributes:
        node: number of the node in the job. host: its name.
        reason: `rank`: a rank of this node ended badly; `port`: the nodes could not meet, because
            the port was taken; `peer`: another node failed, or is gone.
        ranks: those of this node that ended badly by themselves, in the order of their ends.
    """

    kind: ClassVar[str] = "failure"

    node: int
    host: str
    reason: Literal["rank", "port", "peer"]
    time: float
    ranks: list[RankEnd] = []


def first_cause(failures: Iterable[Failure]) -> tuple[Failure, RankEnd] | None:
    """The rank whose end brought down the others, and its node's record; None without one.

    A rank that lost its connection to another follows that one, whatever the nodes' clocks say.
    """
    ends = [(failure, end) for failure in failures for end in failure.ranks]
    return min(ends, key=lambda pair: (pair[1].follows, pair[1].time), default=None)
