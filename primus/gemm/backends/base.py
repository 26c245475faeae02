"""What a library must offer for its kernels to be tuned: the whole interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.gemm.problem import Problem
from primus.gemm.stack import Stack

# What every library's own choice is called; it stands first among a problem's candidates.
DEFAULT = "default"

NumericsClass = Literal["exact", "rounding", "lossy"]

# A kernel whose RMS error against float64 is at most this many times the default's only rounds
# in another order; beyond it, it is lossy.
ROUNDING_LIMIT = 1.5


class ToolFailure(RuntimeError):
    """The library's own program died or lost its device.

    Out of `screen`, `interleave` or `numerics` it makes the pool try the whole problem once more.
    """


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """All that a worker process needs to open the same backend as its parent."""

    name: str
    threads: int = 1
    replay_file: str | None = None
    workspace_mib: int = 32

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Numerics:
    """How a candidate's result differs from the default's, on random operands.

    Attributes:
        error_ratio: RMS error against float64 over the default's; 1 when both are equal.
    """

    kind: NumericsClass
    error_ratio: float

    @classmethod
    def of(
        cls, equal: bool, error: float, default_error: float, *, in_order: float = 0.0
    ) -> Numerics:
        """Classify from bit-equality and the two RMS errors.

        Args:
            in_order: error of adding the products one after the other in the type in which they
                are added up. A library that adds in blocks is more precise, and what is no worse
                than this has lost no precision by its type.
        """
        if equal:
            return cls("exact", 1.0)
        ratio = error / default_error if default_error else float(error > 0) * 1e9
        rounding = ratio <= ROUNDING_LIMIT or error <= in_order
        return cls("rounding" if rounding else "lossy", round(ratio, 4))


class Backend(ABC):
    """One library's kernels. A backend lives in one process and works on one problem at a time.

    The search calls `candidates` once per problem, then `measure` many times, interleaving the
    candidates, then `numerics` for those that look faster.

    Attributes:
        bytes_per_us: rough memory bandwidth; it orders the problems, no more.
        min_gain: share by which a kernel must beat the default, where the settings name none.
    """

    name: ClassVar[str]
    bytes_per_us: ClassVar[float]
    min_gain: ClassVar[float] = 0.02

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this machine cannot measure with the library; None where it can."""

    @abstractmethod
    def stack(self) -> Stack:
        """What the times of this machine hold for."""

    @abstractmethod
    def candidates(self, problem: Problem) -> tuple[str, ...]:
        """Names of the kernels that may compute the problem, the default first.

        Empty where not even the default can be measured. A name must mean the same kernel in
        every process with the same stack.
        """

    @abstractmethod
    def measure(self, problem: Problem, candidate: str) -> float:
        """One sample: microseconds of one call, on random operands, warmed up.

        Raises:
            RuntimeError: the kernel refuses the problem.
        """

    @abstractmethod
    def numerics(self, problem: Problem, candidate: str) -> Numerics:
        """Compare a candidate's result with the default's and with float64."""

    @abstractmethod
    def peak(self, type_name: str) -> float:
        """Measured maximum of `torch.mm` in 10^12 FLOP/s for operands of a GEMM type."""

    def peak_types(self, type_name: str) -> tuple[str, ...]:
        """The types in which kernels for operands of a type may compute; their peaks bound it."""
        return (type_name,)

    def bandwidth(self) -> float | None:
        """Measured maximum at which operands move in 10^9 bytes per second; None: no pruning.

        Where measuring leaves small operands in a cache, that is the maximum of the cache.
        """
        return None

    def devices(self) -> int:
        """How many processes can measure at a time without disturbing each other."""
        return 1

    def worker_environment(self, number: int) -> Mapping[str, str]:
        """Variables of measuring process `number` (from 0), such as the device that it uses."""
        return {}

    def screen(self, problem: Problem, rounds: int) -> dict[str, list[float] | str]:
        """A first look at every candidate: samples in microseconds, or why it cannot run.

        Slow ones are given up early. A library whose own tool times all kernels in one go
        overrides this.
        """
        from primus.gemm.measure import screen_one_by_one

        return screen_one_by_one(self, problem, rounds)

    def interleave(
        self, problem: Problem, candidates: Sequence[str], rounds: int
    ) -> dict[str, list[float]]:
        """Rounds of one sample of each in microseconds; who comes first changes each round.

        A library whose own tool must be started for each sample overrides this.

        Raises:
            RuntimeError: a kernel refuses the problem.
        """
        from primus.gemm.measure import interleave_one_by_one

        return interleave_one_by_one(self, problem, candidates, rounds)

    def details(self, problem: Problem) -> Mapping[str, Any]:
        """Plain values about a problem just measured that `write` will need; kept in the store."""
        return {}

    def why_no_candidates(self, problem: Problem) -> str:
        """What to tell where the default has no rival."""
        return "the library has no other kernel"

    def write(
        self, header: TunedHeader, rows: Sequence[TunedRow], directory: Path
    ) -> Sequence[Path]:
        """Write the library's own files beside tuned.jsonl; none by default."""
        return ()

    def activate(self, tuned: Path) -> Mapping[str, str]:
        """Environment under which training uses the result; none where it is applied in torch.

        Called on each node before its ranks start; may copy files to the node's own disk.

        Args:
            tuned: tuned.jsonl; what `write` wrote stands beside it.

        Raises:
            ArtifactError: the library's file is missing or damaged.
        """
        return {}
