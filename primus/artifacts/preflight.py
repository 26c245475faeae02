"""What the checks of a job's nodes found: `attempts/001/preflight.json` of a run, or on its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import Manifest

Severity = Literal["slow", "broken"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Disk(_Row):
    """A directory as one node sees it.

    Attributes:
        free_gib: left for this user. None: not known, `error` says why.
        write_mb_s, read_mb_s: 10^6 bytes per second of one file, to the disk and back.
        error: why it cannot be used; empty where it can.
    """

    free_gib: float | None = None
    write_mb_s: float | None = None
    read_mb_s: float | None = None
    error: str = ""


class Fault(_Row):
    """What a driver reports of a card."""

    text: str
    severity: Severity


class NodeReport(_Row):
    """What one node says of itself before any rank starts.

    Attributes:
        node: its number in the job, from 0.
        directory: the run's. temporary: the node's own, TMPDIR.
        sees: it reads what the node that started the job has written into the directory.
        load: mean number of processes that ran in the last minute.
        faults: what the driver of the GPUs reports.
    """

    node: int
    host: str
    cores: int
    load: float
    memory_available_gib: float
    python: str
    commit: str
    directory: Disk
    temporary: Disk
    sees: bool
    faults: list[Fault] = []


class ClockReport(_Row):
    """A node's wall clock less that of the node that asked, in seconds: between the two bounds."""

    node: int
    low: float
    high: float


class RankReport(_Row):
    """What one rank found of its device.

    Attributes:
        stage: what it was at last: see `primus.preflight_rank`.
        devices: that torch sees on the node.
        tflops: measured with the run's type of numbers, in 10^12 FLOP/s.
        product: SHA-256 of a product of fixed random matrices.
        repeatable: the product had the same bits each time.
        software: versions that must be equal on all ranks, by name.
        variables: of the environment, that must be equal on all ranks.
        error: why a check could not be made; empty where all were.
    """

    rank: int
    node: int
    host: str
    local_rank: int
    stage: str
    device: str = ""
    devices: int = 0
    memory_gib: float | None = None
    free_gib: float | None = None
    tflops: float | None = None
    product: str = ""
    repeatable: bool = True
    software: dict[str, str] = {}
    variables: dict[str, str] = {}
    error: str = ""


class LinkReport(_Row):
    """An all-reduce over all ranks of one node, or of two.

    Attributes:
        round: of the pairs that were measured at the same time; 0 for a node by itself.
        gb_per_second: bus bandwidth in 10^9 bytes per second, as nccl-tests defines it.
    """

    nodes: list[int]
    round: int
    gb_per_second: float | None
    error: str = ""


class Finding(_Row):
    """What is wrong with a node, in words.

    Attributes:
        node: its name.
        severity: `slow` is told, and training goes on; with `broken` nothing is trained.
    """

    node: str
    check: str
    severity: Severity
    measured: str
    needed: str
    fix: str

    def __str__(self) -> str:
        return f"{self.node}: {self.check}: {self.measured}, needed {self.needed}. Fix: {self.fix}"


class Preflight(Manifest):
    """The checks of one job's nodes.

    Attributes:
        job: SLURM's number; None without one.
        hosts: names of all nodes, in the job's order; those of nodes that said nothing, too.
        finished: all checks of the ranks came to an end.
        excluded: nodes that the job's next turn does without, after this one.
    """

    kind: ClassVar[str] = "preflight"

    experiment: str
    job: str | None
    started: float
    seconds: float
    hosts: list[str]
    finished: bool
    nodes: list[NodeReport]
    clocks: list[ClockReport]
    ranks: list[RankReport]
    links: list[LinkReport]
    findings: list[Finding]
    excluded: list[str] = []

    @property
    def broken(self) -> list[Finding]:
        """The findings with which nothing is trained."""
        return [finding for finding in self.findings if finding.severity == "broken"]
