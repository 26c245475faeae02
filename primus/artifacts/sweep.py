"""What `<sweep>.json` holds: the points of a sweep, and which of them is best."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.comparison import LossDifference
from primus.artifacts.manifest import FileRecord, Manifest
from primus.artifacts.report import Spread, Verdict

Measure = Literal["validation", "training"]


class SweptPoint(BaseModel):
    """One point; figures are null where its run has logged nothing.

    Attributes:
        label: what tells it from the others.
        values: of the sweep's keys by dotted name, defaults and values of files among them.
        state: "finished", how far it is, how its last attempt ended, or why it cannot be read.
        finished: it went as far as the sweep wants it to. train_iters: which is so far.
        training_loss: mean over the last quarter of its rows. validation_loss: the last one.
        tokens_per_second: over the rows after the warm-up.
        wall_seconds: from its first start to the end of its last attempt.
        device_hours: of all attempts.
        report: verdict of the run's report; null where there is none of its present files.
        difference: of its training loss from the best point's; null for that one, for points that
            have not finished, and where the losses are not the same thing.
        inputs: hashes of the files that were read, by name inside the directory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    values: dict[str, Any]
    directory: str
    key: str
    state: str
    finished: bool
    iteration: int | None = None
    train_iters: int
    consumed_tokens: int | None = None
    training_loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    tokens_per_second: Spread | None = None
    wall_seconds: float | None = None
    device_hours: float | None = None
    report: Verdict | None = None
    difference: LossDifference | None = None
    inputs: dict[str, FileRecord] = {}


class SweepManifest(Manifest):
    """The machine-readable half of a sweep's report.

    Attributes:
        digest: of the runs and how far they are to go, as in the page's name.
        varied: keys that have not the same value in all points. same: the others, with theirs.
        measure: by which points are ranked: "validation" or "training" loss.
        points: finished ones first, by that loss; then those that are on their way, then the rest.
        best: label of the best finished point; null where none can be called so.
        words: what can be said of it.
        notes: what to keep in mind when reading it.
    """

    kind: ClassVar[str] = "sweep"

    name: str
    experiment: str
    digest: str
    varied: list[str]
    same: dict[str, Any]
    measure: Measure
    points: list[SweptPoint]
    best: str | None
    words: list[str]
    notes: list[str]
