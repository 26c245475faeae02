"""What `report.json` holds: the verdict and every headline figure, with what they were made of."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import FileRecord, Manifest

Outcome = Literal["ok", "warning", "failed", "absent"]
Verdict = Literal["passed", "warnings", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Part):
    """One question that the report asks of a run, and its answer in words.

    Attributes:
        outcome: "failed" makes the whole report a failed one; "absent": not applicable here.
    """

    name: str
    outcome: Outcome
    detail: str


class Spread(_Part):
    """Percentiles of a rate over the logged rows, each row weighted once."""

    p5: float
    median: float
    p95: float


class TimeBudget(_Part):
    """Where the wall time went; seconds. The parts add up to it.

    Attributes:
        compute: iterations that are part of the result, without `data`.
        data: of those iterations, the first rank's wait for samples.
        validation: validation passes that are part of the result.
        lost: iterations that were run again after a restart.
        saving: held up by checkpoints that were being written, in all attempts.
        start: from the start of the first attempt to its first iteration. restart: of the others.
        other: the rest of the attempts: logging, ending.
        queue: of SLURM's queue, what no other attempt ran in.
        between: the rest of what no attempt ran in.
    """

    compute: float
    data: float = 0.0
    validation: float
    lost: float
    saving: float
    start: float = 0.0
    restart: float = 0.0
    other: float
    queue: float = 0.0
    between: float


class ExpertFigures(_Part):
    """How even the experts were between the last two checkpoints.

    Attributes:
        layers, experts: layers with experts, and experts of each.
        busiest: the largest, over the layers, of the busiest expert's tokens over their mean.
        median: the median of that over the layers.
        idle: experts that got no token at all, in all layers.
    """

    layers: int
    experts: int
    busiest: float
    median: float
    idle: int


class StepRatio(_Part):
    """Time of a step over the default's, paired within the rounds.

    Attributes:
        median: of the rounds; below 1 this contestant is faster.
        low, high: 95 % interval of the median; the extremes where there are fewer than six rounds.
        significant: there are six rounds or more, and the interval does not hold 1.
    """

    median: float
    low: float
    high: float
    significant: bool


class StepContestant(_Part):
    """Whole training steps of one contestant; microseconds.

    Attributes:
        ratio: against the contestant with the default kernels; null for that one.
        served: products of a step that a tuned kernel computed.
    """

    median_us: float
    minimum_us: float
    ratio: StepRatio | None
    served: int


class StepFigures(_Part):
    """Whole training steps that the contestants ran in turns, when the GEMMs were tuned.

    Attributes:
        rounds: steps of each.
        process: the environment that the ranks start with; null where none was chosen.
    """

    rounds: int
    contestants: dict[str, StepContestant]
    process: str | None


class TuningFigures(_Part):
    """GEMM time of one microbatch on one rank before and after tuning, weighted by calls.

    Attributes:
        default_us, tuned_us: sum over the timed problems of calls times microseconds.
        timed_calls, calls: calls per microbatch whose problem was timed, and all of them.
        microbatches: per iteration and rank; null where the settings are not known.
        saving: 1 - tuned_us / default_us.
        expected_step_saving: share of an iteration that the chosen kernels should save, from
            their times alone; null where the run does not use them.
        hits, defaults, misses, rejections: calls during training; null where not reported.
        steps: null where no whole steps were timed.
    """

    problems: int
    timed_problems: int
    improved_problems: int
    calls: int
    timed_calls: int
    microbatches: int | None
    default_us: float
    tuned_us: float
    saving: float | None
    expected_step_saving: float | None
    hits: int | None
    defaults: int | None
    misses: int | None
    rejections: int | None
    steps: StepFigures | None = None


class Headline(_Part):
    """Every headline figure of a report.

    Attributes:
        rows: rows of metrics.jsonl that are part of the result.
        lost_iterations: iterations that were run again after a restart.
        final_loss: of the last iteration whose batch was not skipped.
        skipped_iterations: steps without an update. skipped_batches: those of a bad batch.
        unigram_entropy: nats per token, of the training text.
        wall_seconds: from the first start, or from when its job was submitted where that is
            known, to the end of the last attempt.
        device_hours: sum over attempts of duration times ranks.
        effective_share: time_budget.compute and .data over wall_seconds.
        peak_bytes: the most memory that one rank held; null in runs of older versions.
        device_bytes: what the smallest device has.
    """

    iterations: int
    train_iters: int | None
    consumed_samples: int
    consumed_tokens: int
    rows: int
    superseded_rows: int
    lost_iterations: int
    final_loss: float
    validation_loss: float | None
    best_validation_loss: float | None
    unigram_entropy: float
    parameters: int
    flops_per_token: float
    tokens_per_second: Spread
    tflops_per_second: Spread
    peak_share: Spread | None
    seconds_per_iteration: Spread
    skipped_iterations: int
    skipped_batches: int = 0
    attempts: int
    wall_seconds: float
    device_hours: float
    time_budget: TimeBudget
    effective_share: float
    checkpoints: int
    checkpoint_bytes: int
    peak_bytes: int | None = None
    device_bytes: int | None = None
    experts: ExpertFigures | None = None
    tuning: TuningFigures | None


class ReportManifest(Manifest):
    """The machine-readable half of a report.

    Attributes:
        inputs: every file read by its path relative to this file, as it was then.
        arguments: the report's own inputs by option name, relative to this file.
    """

    kind: ClassVar[str] = "report"

    experiment: str
    key: str
    verdict: Verdict
    summary: str
    checks: list[Check]
    headline: Headline
    inputs: dict[str, FileRecord]
    arguments: dict[str, list[str]]
