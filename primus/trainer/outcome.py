"""What came of a run: has it finished, why did an attempt end, and its manifest. No torch here."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from primus.artifacts.failure import Failure, first_cause, how, hung_rank
from primus.artifacts.provenance import environment
from primus.artifacts.run import (
    Attempt,
    AttemptResult,
    MetricsRow,
    Row,
    RunIdentity,
    TrainManifest,
    ValidationRow,
    read_attempts,
)
from primus.artifacts.tokens import SamplesManifest
from primus.config.frozen import StageSettings
from primus.errors import (
    ArtifactError,
    CheckpointError,
    DataError,
    OutOfMemoryError,
    PreemptedError,
    TrainingError,
    UnavailableError,
    UserError,
)
from primus.ranks.ends import last_lines, signal_name, telling
from primus.ranks.places import node_directory
from primus.trainer import checkpoint_directory
from primus.trainer.memory import advice
from primus.trainer.restarts import close_earlier

_SIGNALLED = 128
_ROW: TypeAdapter[Row] = TypeAdapter(Row)


def read_metrics(directory: Path) -> list[Row]:
    """Every row of the run's metrics.jsonl, of all attempts, in the order of writing.

    Raises:
        ArtifactError: a line before the last is damaged (the last may be torn by a kill).
    """
    path = directory / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
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
        OutOfMemoryError: a rank got no memory; the message names the keys to change.
        CheckpointError: no checkpoint could be saved, or none is good.
        TrainingError: it failed, or left no good checkpoint at `train_iters`; the
            message names the cause, the logs and what to do.
    """
    last = read_attempts(directory)[-1:]
    number = max(int(path.name) for path in (directory / "attempts").iterdir())
    attempt = last[0] if last and last[0].number == number else None
    path = directory / "attempts" / f"{number:03d}"
    if attempt is not None and not attempt.mendable:
        # It held the lease, so nobody else writes to the run.
        close_earlier(directory, attempt)
    if attempt is not None and attempt.status == "completed" and finished(directory, settings):
        return
    failures = failures_of(path / "logs", settings.nodes)
    found = first_cause(failures)
    ended = found[1].status if found is not None else status
    if attempt is not None and attempt.mendable:
        kind = DataError if ended == DataError.exit_code else UserError
        raise kind(attempt.reason)
    if attempt is None and status == UserError.exit_code:
        raise UnavailableError(
            f"{directory}: the ranks of attempt {number} cannot be started; why is said above. "
            "Fix: mend that, and run the same command again"
        )
    if status > _SIGNALLED:
        # So srun and shells say it.
        status = _SIGNALLED - status
    cause = _cause(attempt, failures, status, path / "logs")
    if attempt is not None and attempt.status in ("running", "failed"):
        reason = cause.removeprefix("failed: ")
        attempt.model_copy(update={"status": "failed", "reason": reason}).save(
            path / "attempt.json"
        )
    message = f"{directory}: attempt {number} {cause}. Logs: {path / 'logs'}. "
    if status == os.EX_OSERR or (found is not None and found[1].out_of_memory):
        raise OutOfMemoryError(f"{message}The last checkpoint is kept. Fix: {advice(settings)}")
    message += "The last checkpoint is kept; run the same command again to go on from it"
    if attempt is not None and attempt.status == "preempted":
        advanced = attempt.last_iteration > attempt.first_iteration
        raise PreemptedError(message, advanced=advanced)
    if ended == CheckpointError.exit_code:
        raise CheckpointError(message)
    raise TrainingError(message)


def failures_of(logs: Path, nodes: int) -> list[Failure]:
    """What the agents of the nodes saw of a failure, where they saw one."""
    found = []
    for node in range(nodes):
        # By its name: a network file system may list a directory's new files late.
        path = logs / node_directory(node) / "failure.json"
        if path.exists():
            found.append(Failure.load(path))
    return found


def port_was_taken(logs: Path) -> bool:
    """Whether ranks never started because the port where they were to meet was taken."""
    return any(failure.reason == "port" for failure in failures_of(logs, 1))


def _cause(attempt: Attempt | None, failures: list[Failure], status: int, logs: Path) -> str:
    """What happened, to follow the number of the attempt."""
    if attempt is not None and attempt.status in ("preempted", "failed"):
        return f"{attempt.status}: {_ended_by_signal(attempt, failures)}{attempt.reason}"
    hung = next((f for f in failures if f.reason == "hang"), None)
    if hung is not None:
        return f"hung: {_hang(failures, hung)}; the stacks of all: {logs}/node*/rank*/stacks.txt"
    found = first_cause(failures)
    if found is not None:
        failure, end = found
        words = telling(end.lines)
        said = f". Its last lines: {words}" if words else ""
        lack = ", out of memory" if end.out_of_memory else ""
        return f"failed: rank {end.rank} on {failure.host} {how(end)}{lack}{said}"
    if any(failure.reason == "port" for failure in failures):
        return "did not start: the ports where its nodes were to meet were taken each time"
    if attempt is None:
        return f"did not start ({_status(status)})"
    if status != 0 and "Timeout (" in "\n".join(last_lines(logs / "stacks.txt", 1000)):
        return f"hung: rank 0 did not get on; its stacks: {logs / 'stacks.txt'}"
    after = f"after iteration {attempt.last_iteration} or later"
    if status < 0:
        # Of several ranks it is their agent that this process has started.
        who = "rank 0" if attempt.world_size == 1 else "the agent of its ranks"
        return f"failed: {who} on {attempt.host} was ended by {signal_name(-status)} {after}"
    return f"ended {after} ({_status(status)})"


def _ended_by_signal(attempt: Attempt, failures: list[Failure]) -> str:
    """The rank that a signal ended under an attempt that says what that led to, such as no save."""
    found = first_cause(failures)
    if attempt.status != "failed" or found is None or found[1].signal is None:
        return ""
    told = f"rank {found[1].rank} on {found[0].host} {how(found[1])}"
    return "" if attempt.reason.startswith(told) else f"{told}; "


def _status(status: int) -> str:
    return f"ended by {signal_name(-status)}" if status < 0 else f"exit status {status}"


def _hang(failures: list[Failure], noticed: Failure) -> str:
    found = hung_rank(failures)
    if found is None:
        return f"no rank got on, as seen from {noticed.host}, and none of them stands out"
    failure, one = found
    process = "its process did not answer" if not one.answered else f"it was in {one.where}"
    if one.state != "running":
        process = f"its process was {one.state}"
    place = f"after iteration {one.iteration}" if one.iteration >= 0 else "at its start"
    return (
        f"rank {one.rank} on {failure.host} did not get on {place}, in the phase {one.phase!r}, "
        f"for {one.silent_seconds:.0f} s: {process}"
    )


def _result(directory: Path) -> AttemptResult | None:
    newest = max((directory / "attempts").glob("*/result.json"), default=None)
    try:
        return AttemptResult.load(newest) if newest is not None else None
    except ArtifactError:
        # Damaged: the next attempt, which has nothing left to train, writes its own.
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
    losses = [row.loss for row in final if row.loss is not None]
    if not losses:
        raise ArtifactError(f"{directory}: metrics.jsonl holds no loss: every batch was skipped")
    at_end = [row.loss for row in valid if row.iteration == result.iteration]
    tried = read_attempts(directory)
    summaries = list(checkpoint_directory.summarise(directory / "checkpoints", settings.key))
    return TrainManifest(
        experiment=settings.experiment,
        key=settings.key,
        iteration=result.iteration,
        consumed_samples=result.consumed_samples,
        consumed_tokens=result.consumed_tokens,
        loss=losses[-1],
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
        environment=result.environment
        or environment(
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
