"""What a training run leaves behind.

Layout of `output/runs/<experiment>/<key>/`:

    run.json          RunIdentity, written once at the first start; guards the directory
    train.json        TrainManifest, the only file here that Snakemake knows
    metrics.jsonl     one MetricsRow per logged iteration, ValidationRow per validation,
                      WatchRow per thing that was wrong with a number or a rank, MemoryRow and
                      ExpertRow per checkpoint
    tuned.jsonl       the tuned result that this run uses for its whole life
    started_from.json  StartedFrom, where `load_checkpoint` is set
    tuned.verified.json  TunedVerification, where the library itself counts nothing
    checkpoints/iter_0000100/{manifest.json, …}
    attempts/001/     attempt.json (Attempt), rank logs
    tensorboard/, wandb/, mlflow/   what trackers keep, where they are asked for
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import LargeFiles, Manifest
from primus.errors import ArtifactError

Status = Literal["running", "completed", "preempted", "failed"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunIdentity(Manifest):
    """Whose directory this is.

    Attributes:
        key: identity hash of the train stage.
        settings: the train stage's identity settings.
        samples_fingerprint: what the run is trained on.
        tuned_sha256: hash of the run's copy of the tuned result; null without tuning.
        weights_fingerprint: of the Hugging Face model it started from; null: random weights.
    """

    kind: ClassVar[str] = "run"

    experiment: str
    key: str
    settings: dict[str, Any]
    samples_fingerprint: str
    tokenizer_fingerprint: str
    tuned_sha256: str | None
    weights_fingerprint: str | None = None


class StartedFrom(Manifest):
    """The checkpoint of another run from which this one started.

    Attributes:
        checkpoint: its directory. manifest_sha256: of its manifest, which names all of its files.
    """

    kind: ClassVar[str] = "start"

    checkpoint: str
    manifest_sha256: str


class MetricsRow(_Row):
    """One logged iteration; averages and rates are over the iterations since the last row.

    Attributes:
        time: seconds since the epoch.
        loss: mean cross entropy in nats per token, of this iteration's global batch; null: it was
            not finite, and the batch was skipped.
        mtp_losses: the same of each layer that predicts one token further; not part of `loss`.
        grad_norm: before clipping; null: it was not finite, or not computed.
        skipped_iterations: steps without an update so far, because of an overflow in float16 or of
            a batch that was skipped.
        skipped_batches: the latter alone.
        sample_checksum: of all samples consumed so far, as `primus.consumed` has it; null: the run
            goes on from a checkpoint without one.
        tokens_per_second: of the whole job.
        tflops_per_second: model FLOP/s of the whole job / 10^12 (no recomputation counted).
        peak_share: tflops_per_second over the measured peak of all devices of the job.
        data_seconds: of seconds_per_iteration, waiting for samples on the first rank; null in rows
            of older versions.
        expert_load: by layer with experts, the tokens of its busiest expert over their mean.
    """

    type: Literal["train"] = "train"
    attempt: int
    iteration: int
    consumed_samples: int
    consumed_tokens: int
    time: float
    loss: float | None
    mtp_losses: list[float] = []
    lr: float
    grad_norm: float | None
    skipped_iterations: int
    skipped_batches: int = 0
    sample_checksum: str | None = None
    seconds_per_iteration: float
    tokens_per_second: float
    tflops_per_second: float
    peak_share: float | None
    data_seconds: float | None = None
    expert_load: list[float] = []


class ValidationRow(_Row):
    """Mean loss over `batches` global batches of the validation split."""

    type: Literal["valid"] = "valid"
    attempt: int
    iteration: int
    time: float
    loss: float
    batches: int
    seconds: float


class WatchRow(_Row):
    """Something that a person should see: a batch that was skipped, a loss spike, a slow rank.

    Attributes:
        message: the line of the log.
        ranks: concerned, where it is known; not more than a log line holds.
        sample_ids: of the batch, likewise.
    """

    type: Literal["watch"] = "watch"
    attempt: int
    iteration: int
    time: float
    what: Literal["skipped batch", "loss spike", "slow rank"]
    message: str
    ranks: list[int] = []
    sample_ids: list[int] = []


class MemoryRow(_Row):
    """Memory of all ranks, after the first logged iteration of an attempt and after each save.

    Attributes:
        peak_bytes: by rank, the most that it held so far in this attempt: on a GPU what torch has
            reserved of its memory, on a CPU the resident set of the process.
        device_bytes: by rank, what its device has: a GPU's own, or the machine's memory, which all
            of its ranks share.
    """

    type: Literal["memory"] = "memory"
    attempt: int
    iteration: int
    time: float
    peak_bytes: list[int]
    device_bytes: list[int]


class ExpertRow(_Row):
    """Tokens that each expert got since the row before, of all ranks and micro-batches.

    Attributes:
        layers: numbers of the layers with experts, from 1.
        tokens: by layer and expert; a token counts once for each of its experts.
    """

    type: Literal["experts"] = "experts"
    attempt: int
    iteration: int
    time: float
    layers: list[int]
    tokens: list[list[int]]


Row = MetricsRow | ValidationRow | WatchRow | MemoryRow | ExpertRow
ROWS: dict[str, type[Row]] = {
    "train": MetricsRow,
    "valid": ValidationRow,
    "watch": WatchRow,
    "memory": MemoryRow,
    "experts": ExpertRow,
}


class Attempt(Manifest):
    """One start of the trainer in a run directory; rewritten when it ends.

    Attributes:
        mendable: it failed by a mistake that the user can mend; the reason says how.
        variables: set for the ranks so that the tuned kernels are used.
        started: before the checks of nodes and before its ranks.
        job: number of the SLURM job; null outside of one.
        submitted, job_started: when that job was submitted, or sent back to the queue, and when it
            left the queue.
        longest_save_seconds: of the checkpoints that it saved.
        save_seconds: for which saves held up its first rank, all together.
    """

    kind: ClassVar[str] = "attempt"

    number: int
    status: Status
    reason: str
    mendable: bool = False
    variables: dict[str, str] = {}
    started: float
    finished: float | None
    first_iteration: int
    last_iteration: int
    resumed_from: str | None
    host: str
    pid: int
    world_size: int
    job: str | None = None
    submitted: float | None = None
    job_started: float | None = None
    longest_save_seconds: float = 0.0
    save_seconds: float = 0.0


def read_attempts(directory: Path) -> list[Attempt]:
    """Every attempt of a run that left a readable record, oldest first."""
    found = []
    for path in (directory / "attempts").glob("*/attempt.json"):
        try:
            found.append(Attempt.load(path))
        except ArtifactError:
            continue
    return sorted(found, key=lambda attempt: attempt.number)


class TunedUse(_Row):
    """What became of the tuned kernels in an attempt; the numbers count calls.

    Attributes:
        hits: calls served by a tuned kernel that is not the default.
        defaults: calls for which the tuned result says that the default is best.
        misses: calls of problems that the result does not know.
        rejections: calls whose tuned kernel cannot serve them; the default did.
        problems: per problem `problem` (its one-line text), `calls`, `use` ("hit", "default",
            "miss", "rejection", "unused"), `candidate`, and where there is something to say `why`
            and `nearest` (calls with another number of tokens than the problem). Every tuned
            problem is among them.
        counted: whether the run's own calls were counted, or those of a verification before it.
    """

    hits: int
    defaults: int
    misses: int
    rejections: int
    problems: list[dict[str, Any]] = []
    counted: Literal["run", "verification"] = "run"


class TunedVerification(Manifest):
    """Training steps under a tuned file, dumped: what the library did with it.

    Attributes:
        tuned_sha256: of the tuned.jsonl. stack: what the library was.
        iterations: steps of one micro-batch; `use` counts their calls.
    """

    kind: ClassVar[str] = "tuned-verification"

    tuned_sha256: str
    stack: dict[str, Any]
    iterations: int
    use: TunedUse


class Environment(_Row):
    """Where a run was trained, as its first rank saw it."""

    host: str
    platform: str
    device: str
    devices: int
    memory_gib: float
    python: str
    libraries: dict[str, str]
    variables: dict[str, str]
    code_commit: str
    code_dirty: bool


class AttemptResult(Manifest):
    """What rank 0 knows at the end of an attempt that reached `train_iters`.

    Attributes:
        seconds: of the attempt, from the start of the process.
        peak_tflops_per_device: measured or configured; null where nothing measured it.
        environment: of the first rank; null in results of an older version.
    """

    kind: ClassVar[str] = "attempt-result"

    iteration: int
    consumed_samples: int
    consumed_tokens: int
    parameters: int
    flops_per_token: float
    peak_tflops_per_device: float | None
    seconds: float
    device: str
    platform: str
    tuned: TunedUse | None
    environment: Environment | None = None


class CheckpointManifest(Manifest):
    """A checkpoint directory; written last, so a directory without it is unfinished.

    Attributes:
        files: every file by path relative to the directory.
        settings: identity and extent of the run as they were at the start of the attempt.
        parent: name of the checkpoint that this attempt resumed from.
        consumed_tokens: null in checkpoints of older versions.
    """

    kind: ClassVar[str] = "checkpoint"

    iteration: int
    consumed_samples: int
    consumed_tokens: int | None = None
    key: str
    settings: dict[str, Any] = {}
    parent: str | None
    attempt: int
    created: float
    world_size: int
    layout: dict[str, int]
    samples_fingerprint: str
    tokenizer_fingerprint: str
    tuned_sha256: str | None
    code_commit: str
    code_dirty: bool
    libraries: dict[str, str]
    files: LargeFiles


class CheckpointSummary(_Row):
    """A verified checkpoint of a run, as its train manifest lists it."""

    name: str
    iteration: int
    manifest_sha256: str
    bytes: int


class TrainManifest(Manifest):
    """A finished, verified training run.

    Attributes:
        peak_tflops_per_device: measured or configured, the denominator of peak_share.
        loss: of the last iteration whose batch was not skipped.
        validation_loss: at the last iteration; null where eval_iters is 0.
        checkpoints: every verified checkpoint, oldest first.
    """

    kind: ClassVar[str] = "train"

    experiment: str
    key: str
    iteration: int
    consumed_samples: int
    consumed_tokens: int
    loss: float
    validation_loss: float | None
    parameters: int
    flops_per_token: float
    seconds: float
    tokens_per_second: float
    peak_tflops_per_device: float | None
    attempts: int
    samples_fingerprint: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    weights_fingerprint: str | None = None
    tuned: TunedUse | None
    settings: dict[str, Any]
    environment: Environment
    checkpoints: list[CheckpointSummary]
    warnings: list[str] = []
