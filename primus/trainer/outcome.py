"""What came of a run: has it finished, why did an attempt end, and its manifest. No torch here."""

from __future__ import annotations

import signal
import statistics
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from primus.artifacts.provenance import environment
from primus.artifacts.run import (
    Attempt,
    AttemptResult,
    MetricsRow,
    RunIdentity,
    TrainManifest,
    ValidationRow,
)
from primus.artifacts.tokens import SamplesManifest
from primus.config.frozen import StageSettings
from primus.errors import ArtifactError, PreemptedError, TrainingError, UserError
from primus.trainer import checkpoint_directory, run_directory

_ROW: TypeAdapter[MetricsRow | ValidationRow] = TypeAdapter(MetricsRow | ValidationRow)


def read_metrics(directory: Path) -> list[MetricsRow | ValidationRow]:
    """Every row of the run's metrics.jsonl, of all attempts, in the order of writing.

    Raises:
        ArtifactError: a line before the last is damaged (the last may be torn by a kill).
    """
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_ROW.validate_json(line))
        except ValidationError as error:
            if number < len(lines):
                raise ArtifactError(f"{path}:{number}: damaged row") from error
    return rows


def finished(directory: Path, settings: StageSettings) -> bool:
    """Whether the run has a good checkpoint at `train_iters` or beyond, and its result."""
    newest = next(iter(checkpoint_directory.newest_first(directory / "checkpoints")), None)
    result = _result(directory)
    if newest is None or result is None:
        return False
    reached = checkpoint_directory.iteration_of(newest) or 0
    # An attempt killed between its last checkpoint and its result leaves an older result, or none.
    if reached < settings.train_iters or result.iteration != reached:
        return False
    try:
        checkpoint_directory.verify(newest, settings.key)
    except ArtifactError:
        return False
    return True


def require_completed(directory: Path, settings: StageSettings, status: int) -> None:
    """Check how the last attempt ended.

    Raises:
        UserError: it failed by a mistake that the user can mend; the rank's own words.
        PreemptedError: it was asked to stop, and has saved.
        TrainingError: it failed, or left no good checkpoint at `train_iters`; the
            message names the cause, the logs and what to do.
    """
    last = run_directory.attempts(directory)[-1:]
    number = max(int(path.name) for path in (directory / "attempts").iterdir())
    attempt = last[0] if last and last[0].number == number else None
    logs = directory / "attempts" / f"{number:03d}" / "logs"
    if attempt is not None and attempt.status == "completed" and finished(directory, settings):
        return
    if attempt is not None and attempt.mendable:
        raise UserError(attempt.reason)
    cause = _cause(attempt, status)
    if attempt is not None and attempt.status == "running":
        attempt.model_copy(update={"status": "failed", "reason": cause}).save(
            directory / "attempts" / f"{number:03d}" / "attempt.json"
        )
    message = (
        f"{directory}: attempt {number} {cause}. Logs: {logs}. "
        "The last checkpoint is kept; run the same command again to go on from it"
    )
    if attempt is not None and attempt.status == "preempted":
        advanced = attempt.last_iteration > attempt.first_iteration
        raise PreemptedError(message, advanced=advanced)
    raise TrainingError(message)


def _cause(attempt: Attempt | None, status: int) -> str:
    if attempt is None:
        return f"did not start (exit status {status})"
    if attempt.status in ("preempted", "failed"):
        return f"{attempt.status}: {attempt.reason}"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended after iteration {attempt.last_iteration} or later (exit status {status})"


def _result(directory: Path) -> AttemptResult | None:
    for path in sorted((directory / "attempts").glob("*/result.json"), reverse=True):
        return AttemptResult.load(path)
    return None


def train_manifest(
    directory: Path, settings: StageSettings, identity: RunIdentity, samples: SamplesManifest
) -> TrainManifest:
    """The manifest of a finished run; every checkpoint is verified on the way.

    Raises:
        ArtifactError: metrics and result do not fit together.
    """
    result = _result(directory)
    rows = read_metrics(directory)
    final = [row for row in rows if isinstance(row, MetricsRow)]
    valid = [row for row in rows if isinstance(row, ValidationRow)]
    if result is None or not final or final[-1].iteration != result.iteration:
        raise ArtifactError(f"{directory}: metrics.jsonl does not end at the last iteration")
    at_end = [row.loss for row in valid if row.iteration == result.iteration]
    tried = run_directory.attempts(directory)
    summaries = list(checkpoint_directory.summarise(directory / "checkpoints", settings.key))
    return TrainManifest(
        experiment=settings.experiment,
        key=settings.key,
        iteration=result.iteration,
        consumed_samples=result.consumed_samples,
        consumed_tokens=result.consumed_tokens,
        loss=final[-1].loss,
        validation_loss=at_end[-1] if at_end else None,
        parameters=result.parameters,
        flops_per_token=result.flops_per_token,
        seconds=sum((a.finished or a.started) - a.started for a in tried),
        tokens_per_second=statistics.median(row.tokens_per_second for row in final),
        peak_tflops_per_device=result.peak_tflops_per_device,
        attempts=len(tried),
        samples_fingerprint=identity.samples_fingerprint,
        data_fingerprint=samples.data_fingerprint,
        tokenizer_fingerprint=identity.tokenizer_fingerprint,
        weights_fingerprint=identity.weights_fingerprint,
        tuned=result.tuned,
        settings=settings.identity | settings.extent,
        environment=environment(
            platform_name=result.platform,
            device=result.device,
            devices=settings.nproc_per_node * settings.nodes,
            variables=settings.env.as_dict() | (tried[-1].variables if tried else {}),
        ),
        checkpoints=summaries,
        warnings=_warnings(directory, settings, result, len(summaries)),
    )


def _warnings(
    directory: Path, settings: StageSettings, result: AttemptResult, good: int
) -> list[str]:
    found = []
    if result.iteration > settings.train_iters:
        found.append(
            f"the run is at iteration {result.iteration}, beyond train_iters = "
            f"{settings.train_iters}: it was extended before"
        )
    damaged = len(checkpoint_directory.newest_first(directory / "checkpoints")) - good
    if damaged:
        found.append(f"{damaged} checkpoints do not verify and were left out")
    return found
