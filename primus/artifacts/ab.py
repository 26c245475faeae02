"""The tuned kernels against the default ones in an experiment's own training, and what follows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.gemm import TunedRow
from primus.artifacts.manifest import Manifest
from primus.artifacts.steps import Contestant, Ratio

Kernels = Literal["default", "tuned"]
Numerics = Literal["exact", "rounding", "lossy"]
# With fewer rounds a sign test of 95 % cannot tell anything.
LEAST_ROUNDS = 6
# By how much of its value a loss may differ in the steps of a segment where kernels round in
# another order: it grows from step to step, as the weights part.
TOLERANCE = {"float32": 1e-4, "16 bit": 1e-2}

Outcome = Literal["faster", "slower", "no difference", "too few rounds", "nothing to compare"]


class Segment(BaseModel):
    """One start of all ranks, from the same weights and samples as every other.

    Attributes:
        round: from 0; each has a segment of either kernels.
        seconds: per step that was timed, of the rank that took longest.
        losses: per iteration, those of the warm-up first; null: that batch was skipped.
        served: calls that a tuned kernel served, as `TunedUse.hits` counts them.
        started_seconds: from the start of the processes to the first step that was timed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int
    kernels: Kernels
    seconds: list[float]
    losses: list[float | None]
    served: int
    started_seconds: float


class AbManifest(Manifest):
    """ab.json: what `ab_<experiment>` found.

    Attributes:
        key: of the run whose training this is.
        tuned_sha256: of the tuned.jsonl that was compared.
        winners: problems for which it chooses another kernel than the default.
        environment: variables under which ranks use it.
        numerics: of the chosen kernels, the worst.
        tolerance: share of a loss by which those of the two sides may differ; 0: not at all; null:
            lossy kernels, of which nothing is asked.
        clock: "processor" time of ranks of one thread, which others on the machine do not lengthen,
            or "wall" time.
        micro_batches: of each rank in a step.
        rounds: that were asked for.
        segments: in the order in which they ran, of whole rounds only.
        reason: why no segment was run; empty where some were.
        stopped: why there are fewer rounds than asked for; empty where there are not.
        seconds: that all of it took.
    """

    kind: ClassVar[str] = "ab"

    experiment: str
    key: str
    tuned_sha256: str
    backend: str
    winners: int
    environment: dict[str, str]
    numerics: Numerics
    tolerance: float | None
    clock: Literal["processor", "wall"]
    device: str
    ranks: int
    nodes: int
    threads: int
    micro_batches: int
    micro_batch_size: int
    seq_length: int
    warm_up_steps: int
    steps_per_segment: int
    rounds: int
    segments: list[Segment]
    reason: str = ""
    stopped: str = ""
    libraries: dict[str, str]
    code_commit: str
    code_dirty: bool
    seconds: float

    def of(self, kernels: Kernels) -> list[Segment]:
        """The segments of one side, by round."""
        return sorted(
            (one for one in self.segments if one.kernels == kernels), key=lambda one: one.round
        )

    def contestant(self, kernels: Kernels) -> Contestant:
        """One side, a sample per round: the median of the segment's steps, in microseconds."""
        segments = self.of(kernels)
        samples = [statistics.median(one.seconds) * 1e6 for one in segments]
        served = max((one.served for one in segments), default=0)
        environment = self.environment if kernels == "tuned" else {}
        return Contestant(
            kernels=kernels, environment=environment, served=served, samples=[samples]
        )

    @property
    def ratio(self) -> Ratio | None:
        """Time of a step with the tuned kernels over that with the default ones."""
        if not self.segments:
            return None
        return Ratio.of(self.contestant("tuned"), self.contestant("default"))

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Microseconds per step by round: default, tuned."""
        default, tuned = self.contestant("default"), self.contestant("tuned")
        return list(zip(default.all, tuned.all, strict=True))

    @property
    def outcome(self) -> Outcome:
        """In one word; a difference is called one where the interval leaves out "none"."""
        ratio = self.ratio
        if ratio is None:
            return "nothing to compare"
        if ratio.rounds < LEAST_ROUNDS:
            return "too few rounds"
        if not ratio.significant:
            return "no difference"
        return "faster" if ratio.median < 1 else "slower"

    @property
    def in_words(self) -> str:
        """The outcome as a sentence without its full stop."""
        ratio = self.ratio
        if ratio is None:
            return self.reason
        counted = f"{ratio.rounds} rounds" if ratio.rounds > 1 else "1 round"
        told = (
            f"a step takes {ratio.median:.3f} of its time with the default kernels "
            f"({ratio.low:.3f} to {ratio.high:.3f}, {counted})"
        )
        return {
            "faster": f"the tuned kernels gain {1 / ratio.median - 1:.1%}: {told}",
            "slower": f"the tuned kernels slow the training down: {told}",
            "no difference": f"no difference can be told from the noise: {told}",
            "too few rounds": f"too few rounds to tell, {LEAST_ROUNDS} are needed: {told}",
        }[self.outcome]

    @property
    def lines(self) -> list[str]:
        """All that is to be said."""
        found = [self.in_words, *([self.stopped] if self.stopped else [])]
        if self.segments:
            agree = self.losses
            found.append(f"warning: {agree.in_words}" if agree.agree is False else agree.in_words)
            if self.winners and not self.contestant("tuned").served:
                found.append("warning: no product was served by a tuned kernel")
        return found

    @property
    def losses(self) -> Losses:
        """How the losses of the two sides compare."""
        return Losses.of(self.of("default"), self.of("tuned"), self.numerics, self.tolerance)


@dataclass(frozen=True)
class Losses:
    """Losses of the same iterations, with the tuned kernels against the default ones.

    Attributes:
        between: largest difference from the first default segment, as a share of the loss.
        own: the same among the default segments: what a repetition differs by.
        agree: as the class of the kernels says; None: nothing is asked of it, or nothing was run.
    """

    between: float
    own: float
    agree: bool | None
    in_words: str

    @classmethod
    def of(
        cls,
        default: list[Segment],
        tuned: list[Segment],
        numerics: Numerics,
        tolerance: float | None,
    ) -> Losses:
        """Judge the segments of one comparison.

        Args:
            tolerance: 0 holds only where the default kernels repeat their own losses.
        """
        if not default or not tuned:
            return cls(0.0, 0.0, None, "no losses to compare")
        first = default[0].losses
        own = max(_apart(first, one.losses) for one in default)
        between = max(_apart(first, one.losses) for one in tuned)
        if between == 0 == own:
            words = f"all losses of {len(default)} and {len(tuned)} segments are bit for bit equal"
            return cls(between, own, True, words)
        told = f"losses differ by up to {between:.1e} of their value"
        repeats = f"the default kernels' own by {own:.1e}" if own else "the default kernels repeat"
        if tolerance is None:
            return cls(between, own, None, f"{told}, {repeats}; nothing is asked of lossy kernels")
        # What does not even repeat itself cannot be held to its bits.
        allowed = tolerance or (TOLERANCE["float32"] if own else 0.0)
        asked = f"at most {max(allowed, own):.0e}" if allowed else "equality"
        agree = between <= max(allowed, own)
        what = f"{told}, {repeats}; {asked} is asked of kernels called {numerics}"
        return cls(between, own, agree, what if agree else f"LOSSES DO NOT AGREE: {what}")


def _apart(some: list[float | None], others: list[float | None]) -> float:
    """The largest difference as a share of the loss; infinite where not the same were skipped."""
    found = 0.0
    for one, other in zip(some, others, strict=True):
        if one is None or other is None:
            found = max(found, 0.0 if one is other else float("inf"))
        elif one != other:
            found = max(found, abs(one - other) / max(abs(one), abs(other)))
    return found


def worst_numerics(rows: list[TunedRow], default: str) -> Numerics:
    """Of all kernels that are not the default."""
    found = {row.numerics for row in rows if row.candidate != default}
    order: tuple[Numerics, ...] = ("lossy", "rounding", "exact")
    return next((kind for kind in order if kind in found), "exact")
