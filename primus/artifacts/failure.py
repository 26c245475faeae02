"""Why the ranks of an attempt ended: one record per node, `logs/node000/failure.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import Manifest

Reason = Literal["rank", "hang", "port", "peer"]


class RankEnd(BaseModel):
    """A rank that ended badly.

    Attributes:
        rank, local_rank: of all ranks, and of those on its node.
        status: its exit status; None where a signal ended it.
        signal: the name of the signal, such as SIGSEGV.
        time: when its end was seen, in seconds since the epoch, by its node's clock.
        out_of_memory: the kernel killed it for lack of memory, or it said that it got none.
        follows: it complained of a lost connection: its end is a consequence of another's.
        iteration: the last that it had finished; None where that is not known.
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
    iteration: int | None = None
    lines: list[str]


class RankStanding(BaseModel):
    """Where a rank was that had to be killed, because it or another one did not get on.

    Attributes:
        step: how often it had said how far it is; ranks of a job say so at the same places.
        iteration: the last that it had finished; -1: none was begun. phase: what it did after.
        silent_seconds: since it last said so.
        state: of its process. answered: it gave the stacks of its threads.
        waits: by its stacks, it waited for other ranks.
        where: the innermost Python function of its main thread.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int
    local_rank: int
    step: int
    iteration: int
    phase: str
    silent_seconds: float
    state: str
    answered: bool
    waits: bool
    where: str


class Failure(Manifest):
    """What a node's agent saw of a failure.

    Attributes:
        node: number of the node in the job. host: its name.
        reason: `rank`: a rank of this node ended badly; `hang`: one did not get on; `port`: the
            nodes could not meet, because the port was taken; `peer`: another node failed, or is
            gone.
        ranks: those of this node that ended badly by themselves, in the order of their ends.
        standing: those that were killed.
    """

    kind: ClassVar[str] = "failure"

    node: int
    host: str
    reason: Reason
    time: float
    ranks: list[RankEnd] = []
    standing: list[RankStanding] = []


def how(end: RankEnd) -> str:
    """In words how a rank ended: `was ended by SIGSEGV after iteration 1200`."""
    words = f"was ended by {end.signal}" if end.signal else f"ended with exit status {end.status}"
    if end.iteration is None:
        return words
    return f"{words} after iteration {end.iteration}"


def first_cause(failures: Iterable[Failure]) -> tuple[Failure, RankEnd] | None:
    """The rank whose end brought down the others, and its node's record; None without one.

    A rank that lost its connection to another follows that one, whatever the nodes' clocks say.
    """
    ends = [(failure, end) for failure in failures for end in failure.ranks]
    return min(ends, key=lambda pair: (pair[1].follows, pair[1].time), default=None)


def hung_rank(failures: Iterable[Failure]) -> tuple[Failure, RankStanding] | None:
    """The rank for which the others waited, and its node's record.

    One that did not answer comes before one that is behind, and that before one that, at the same
    place, does not wait for others. None where no single rank stands out.
    """

    def order(pair: tuple[Failure, RankStanding]) -> tuple[bool, int, bool]:
        return pair[1].answered, pair[1].step, pair[1].waits

    standing = [(failure, one) for failure in failures for one in failure.standing]
    if not standing:
        return None
    first = min(standing, key=order)
    alone = sum(order(pair) == order(first) for pair in standing) == 1
    return first if alone else None
