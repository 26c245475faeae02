"""Every problem ever timed: one file per problem under the stack that it was timed on.

    <store>/<stack>/stack.json            what the times hold for
    <store>/<stack>/<problem>.json        raw samples of all candidates, or why there are none
    <store>/<stack>/peak.<type>.json      measured peak of `torch.mm`
    <store>/<stack>/bandwidth.json        at which rate operands move at most

Files appear by rename, so that any number of processes may read and write at once; two that time
the same problem leave the later result. The store holds times, never choices: settings such as
min_gain play no part in it.
"""

from __future__ import annotations

import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

from primus.artifacts.manifest import Manifest
from primus.artifacts.provenance import code_version
from primus.errors import ArtifactError
from primus.files import canonical_json, sha256_text
from primus.gemm.measure import MEASUREMENT_VERSION, CandidateTimes
from primus.gemm.problem import Problem
from primus.gemm.stack import Stack


class StackFile(Manifest):
    """Says what the times of a directory hold for."""

    kind: ClassVar[str] = "gemm-stack"

    stack: dict[str, Any]
    measurement: int

    @property
    def key(self) -> str:
        """Hex digits that name the stack's directory."""
        return sha256_text(canonical_json(self.model_dump()))[:16]


class Origin(BaseModel):
    """Where a measurement comes from; no part of what it is about.

    Attributes:
        experiment, stage_key: of the tune stage that measured.
        measured_at: UTC, "2026-11-22T21:40:00Z".
        commit: of this code; "+" at its end where that was changed since.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str
    stage_key: str
    host: str
    measured_at: str = ""
    commit: str = "unknown"

    @classmethod
    def here(cls, experiment: str, stage_key: str) -> Self:
        """This machine and this code."""
        commit, changed = code_version()
        return cls(
            experiment=experiment,
            stage_key=stage_key,
            host=socket.gethostname(),
            commit=commit + ("+" if changed else ""),
        )

    def now(self, host: str | None = None) -> Self:
        """The same, measured at this moment; on `host`, where that is another machine."""
        moment = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.model_copy(update={"measured_at": moment, "host": host or self.host})


class Times(Manifest):
    """What was measured of one problem.

    Attributes:
        candidates: in the order of the backend, the default first; empty after a failure.
        failure: why there are no times; null when there are.
        limit_seconds: the time limit under which it failed by lasting too long; else null.
        details: what the backend keeps about the problem for its own file.
        pruned: why only the default was timed, where others could not have been faster.
        origin: where and for which run it was measured; null in older files.
    """

    kind: ClassVar[str] = "gemm-times"

    problem: dict[str, Any]
    candidates: tuple[tuple[str, CandidateTimes], ...] = ()
    failure: str | None = None
    limit_seconds: float | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    pruned: str | None = None
    origin: Origin | None = None

    def settles(self, timeout: float) -> bool:
        """Whether measuring again under this time limit (seconds) is pointless."""
        return self.limit_seconds is None or self.limit_seconds >= timeout


class PeakFile(Manifest):
    """Measured maximum of `torch.mm` in 10^12 FLOP/s."""

    kind: ClassVar[str] = "gemm-peak"

    type: str
    tflops: float


class BandwidthFile(Manifest):
    """Measured `Backend.bandwidth` in 10^9 bytes per second; null: the backend has no measure."""

    kind: ClassVar[str] = "gemm-bandwidth"

    gb_per_s: float | None


class Store:
    """The times of one stack."""

    def __init__(self, root: Path | str, stack: Stack) -> None:
        self._stack = StackFile(stack=stack.to_json(), measurement=MEASUREMENT_VERSION)
        self.directory = Path(root) / self._stack.key

    def _prepare(self) -> None:
        path = self.directory / "stack.json"
        if not path.exists():
            self._stack.save(path)
            return
        if StackFile.load(path).key != self._stack.key:
            raise ArtifactError(f"{path}: is not the stack that its directory is named after")

    def get(self, problem: Problem) -> Times | None:
        """The times of a problem, or None.

        Raises:
            ArtifactError: its file is damaged, or is of another problem.
        """
        path = self.directory / f"{problem.key}.json"
        if not path.exists():
            return None
        times = Times.load(path)
        if Problem.from_json(times.problem) != problem:
            raise ArtifactError(f"{path}: holds {times.problem}, wanted {problem.to_json()}")
        return times

    def put(self, times: Times) -> None:
        """Keep the times of a problem, in place of older ones."""
        self._prepare()
        times.save(self.directory / f"{Problem.from_json(times.problem).key}.json")

    def get_peak(self, type_name: str) -> float | None:
        """Measured peak in 10^12 FLOP/s for operands of a GEMM type, or None."""
        path = self.directory / f"peak.{type_name}.json"
        return PeakFile.load(path).tflops if path.exists() else None

    def put_peak(self, type_name: str, tflops: float) -> None:
        """Keep a measured peak."""
        self._prepare()
        PeakFile(type=type_name, tflops=tflops).save(self.directory / f"peak.{type_name}.json")

    def get_bandwidth(self) -> BandwidthFile | None:
        """The measured bandwidth, or None where it has not been measured."""
        path = self.directory / "bandwidth.json"
        return BandwidthFile.load(path) if path.exists() else None

    def put_bandwidth(self, gb_per_s: float | None) -> None:
        """Keep a measured bandwidth in 10^9 bytes per second, or that there is none."""
        self._prepare()
        known = None if gb_per_s is None else round(gb_per_s, 3)
        BandwidthFile(gb_per_s=known).save(self.directory / "bandwidth.json")
