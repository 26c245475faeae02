"""What `compare.json` holds: runs side by side, and what can be said of their differences."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import FileRecord, Manifest
from primus.artifacts.report import Check, Spread, Verdict

How = Literal["identity", "extent", "option", ""]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ComparedRun(_Part):
    """One run; rates are over the rows after the warm-up.

    Attributes:
        label: its name in this comparison.
        directory: as it was found.
        state: "finished", or how the last attempt is or ended.
        iteration: of the last row. final_loss: of the last row whose batch was not skipped.
        rows: after the warm-up. warm_up_rows: left out.
        devices: ranks of the last attempt.
        flops_per_token: null before it has finished.
        report: verdict of its report; null where there is none of its present files.
        warnings: of its integrity, with outcome "warning" or "failed".
        inputs: hashes of the files that were read, by name inside the directory.
    """

    label: str
    directory: str
    experiment: str
    key: str
    state: str
    iteration: int
    consumed_tokens: int
    final_loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    rows: int
    warm_up_rows: int
    tokens_per_second: Spread
    tflops_per_second: Spread
    peak_share: Spread | None
    devices: int
    flops_per_token: float | None
    report: Verdict | None
    warnings: list[Check]
    inputs: dict[str, FileRecord]


class SettingDifference(_Part):
    """A key whose values are not all the same.

    Attributes:
        values: of the runs, in their order; null: not set, or not known.
        known: whether the value of each run is known.
        how: what a change of the key means to the first stage that reads it.
        stages: that a change makes something else of, upstream ones first.
    """

    key: str
    values: list[Any]
    known: list[bool]
    how: How
    stages: list[str]


class EnvironmentDifference(_Part):
    """A fact about where and with what the runs were trained; null: not known."""

    name: str
    values: list[str | None]


class Estimate(_Part):
    """A figure and its confidence interval.

    Attributes:
        confidence: of the interval, such as 0.95.
        significant: the interval leaves out "no difference".
    """

    value: float
    low: float
    high: float
    confidence: float
    significant: bool


class ThroughputDifference(_Part):
    """Tokens per second of a run over those of the first one.

    Attributes:
        ratio: of the medians; null where there are too few rows.
        words: what can be said of it.
    """

    run: str
    against: str
    ratio: Estimate | None
    words: str


class LossDifference(_Part):
    """Training loss of a run minus that of the first one, at equal tokens; nats per token.

    Attributes:
        mean: over the last quarter of the tokens that both have, or of short runs over the last
            rows; null where it says nothing.
        rows: that the mean is over.
        same_batches: both read the same samples in the same order.
        equal_rows: rows with bitwise the same loss, where all that both have are so; else 0.
        words: what can be said of it.
    """

    run: str
    against: str
    mean: Estimate | None
    rows: int
    same_batches: bool
    equal_rows: int
    words: str


class ComparisonManifest(Manifest):
    """The machine-readable half of a comparison; every list of values is in the order of `runs`.

    Attributes:
        throughput, losses: of every run but the first, against the first.
        notes: what to keep in mind when reading it.
    """

    kind: ClassVar[str] = "comparison"

    runs: list[ComparedRun]
    settings: list[SettingDifference]
    environment: list[EnvironmentDifference]
    throughput: list[ThroughputDifference]
    losses: list[LossDifference]
    notes: list[str]
