"""What the ranks that run watched steps tell the process that started them."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from primus.artifacts.manifest import Manifest
from primus.artifacts.run import TunedUse
from primus.gemm.problem import Problem
from primus.gemm.record import Recorded


class WatchedSteps(Manifest):
    """Training steps of one micro-batch each, as the ranks saw them.

    Attributes:
        processes: host and number of those of the ranks whose GEMMs count, one per pipeline stage.
        calls: problem, phase and calls per micro-batch.
        varying: problems of experts and their size that varies.
        use: what became of the tuned kernels, over all ranks; null where none were given.
    """

    kind: ClassVar[str] = "watched-steps"

    iterations: int
    processes: list[tuple[str, int]]
    calls: list[tuple[dict[str, Any], str, int]]
    varying: list[tuple[dict[str, Any], str]]
    use: TunedUse | None

    @classmethod
    def of(
        cls,
        recorded: Recorded,
        *,
        iterations: int,
        processes: list[tuple[str, int]],
        use: TunedUse | None,
    ) -> WatchedSteps:
        """From what was recorded."""
        return cls(
            iterations=iterations,
            processes=processes,
            calls=[(p.to_json(), phase, number) for (p, phase), number in recorded.calls.items()],
            varying=[(p.to_json(), tokens) for p, tokens in recorded.varying.items()],
            use=use,
        )

    @property
    def recorded(self) -> Recorded:
        """What torch's dispatcher saw.

        Raises:
            ArtifactError: a problem is none.
        """
        calls: Any = {(Problem.from_json(p), phase): number for p, phase, number in self.calls}
        varying: Any = {Problem.from_json(p): tokens for p, tokens in self.varying}
        return Recorded(Counter(calls), varying)
