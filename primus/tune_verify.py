"""Run training steps under a tuned result, and say for each problem whether it was applied.

`python -m primus.tune --verify`. The settings are those of the experiment's shapes or train stage:
steps of one micro-batch on random tokens, with as many tokens for each expert. Exit status 1 when a
tuned problem that was called was not applied.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primus.artifacts.run import TunedUse, TunedVerification
from primus.config.frozen import StageSettings
from primus.config.layout import nodes_of_copy
from primus.container.spec import Container
from primus.errors import (
    ArtifactError,
    PrimusError,
    TrainingError,
    UserError,
)
from primus.files import read_json, sha256_file
from primus.gemm.activate import activated
from primus.gemm.applied import (
    VERIFIED,
    merged,
    verification_file,
    verification_of,
    with_users,
)
from primus.gemm.tuned import TunedResult
from primus.gemm.verify import failures, table, verdicts
from primus.watched_steps import RANK, keep_logs_of, run_steps

ITERATIONS = 2
# Network file systems show another node's new files after that at the latest.
_LATE_SECONDS = 60.0
_OVERRIDE = "HIPBLASLT_TUNING_OVERRIDE_FILE"


class NotAppliedError(PrimusError):
    """A tuned kernel was not used where it should have been."""


def verify(settings_path: Path, options: Mapping[str, Any], shapes: Path, tuned: Path) -> None:
    """Run the steps and print the table.

    Raises:
        UserError: the settings are of another stage, or the result is of other shapes.
        NotAppliedError: a tuned problem was not applied.
    """
    settings = _settings(settings_path, options)
    result = TunedResult.load(tuned)
    if sha256_file(shapes) != result.header.shapes_sha256:
        raise UserError(
            f"{tuned}: was tuned for other shapes than {shapes}. Fix: give the shapes.jsonl that "
            "it was made from, or tune again"
        )
    container = Container.of(settings)
    variables = activated(tuned, threads=_threads(result), container=container)
    use = watched_use(settings, result, variables)
    found = verdicts(result.rows, use)
    for line in table(found):
        print(line)
    wrong = failures(found)
    if wrong:
        raise NotAppliedError(
            f"{tuned}: {len(wrong)} of {len(found)} problems were not applied as tuned, the first: "
            f"{wrong[0].problem}: {wrong[0].why}"
        )


def _settings(path: Path, options: Mapping[str, Any]) -> StageSettings:
    try:
        stage = read_json(path).get("stage")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot read the settings: {error}") from error
    if stage not in ("shapes", "train"):
        raise UserError(
            f"{path}: settings of stage {stage}: they do not hold the model. Fix: give those of "
            "the experiment's shapes or train stage"
        )
    return StageSettings.load(path, stage, options)


def watched_use(
    settings: StageSettings,
    result: TunedResult,
    variables: Mapping[str, str],
    *,
    nodes: int = 1,
    rank_module: str = RANK,
) -> TunedUse:
    """What a few steps do with a tuned result, over all ranks that hold one copy of the model.

    Args:
        variables: under which ranks use it.
        nodes: of this job, among which the ranks are shared.
        rank_module: as `run_steps`.

    Raises:
        TrainingError: the ranks failed.
    """
    backend, environment = result.header.backend, dict[str, str | None](variables)
    # Several nodes need a directory that all see, as they see the result.
    shared = result.path.resolve().parent if nodes > 1 else None
    with tempfile.TemporaryDirectory(prefix="verify-", dir=shared) as name:
        directory = Path(name)
        if backend in VERIFIED:
            from primus.gemm.hipblaslt import dump

            override = variables.get(_OVERRIDE)
            environment |= dump.environment(directory, Path(override) if override else None)
        steps = run_steps(
            settings,
            directory,
            iterations=ITERATIONS,
            environment=environment,
            threads=_threads(result),
            nodes=nodes,
            tuned=result.path.resolve(),
            rank_module=rank_module,
        )
        if backend in VERIFIED:
            from primus.gemm.hipblaslt.use import used

            keep_logs_of(directory, steps.processes, seconds=_LATE_SECONDS if nodes > 1 else 0.0)
            use = merged([used(result, dump.read(directory))])
            return use.model_copy(update={"counted": "verification"})
    if steps.use is None:
        raise TrainingError("the ranks did not apply the tuned result")
    return steps.use


def _threads(result: TunedResult) -> int:
    return int(result.header.stack.get("threads", 0)) or 1


def activated_and_verified(settings: StageSettings, tuned: Path) -> dict[str, str]:
    """Variables under which the ranks of a training use a tuned result, made ready on its nodes.

    What of them the user's own `env` replaces is said.

    Raises:
        UserError, ArtifactError: it cannot be used here. TrainingError: as `verify_once`.
    """
    users = settings.env.as_dict()
    threads, nodes = settings.threads_per_rank, settings.nodes
    container = Container.of(settings)
    activation = activated(tuned, threads=threads, nodes=nodes, container=container)
    variables, said = with_users(activation, users, os.environ)
    for line in said:
        print(f"warning: {line}", flush=True)
    verify_once(settings, tuned, variables)
    return variables


def verify_once(settings: StageSettings, tuned: Path, variables: Mapping[str, str]) -> None:
    """Keep beside tuned.jsonl what the library does with it, where nothing counts in a run.

    Once per result and stack, on as many nodes of this job as a copy of the model takes. A run does
    not end here when kernels are not applied: it says so, and `gemm_tuning.require` decides after
    the first iteration.

    Raises:
        TrainingError: the ranks failed.
    """
    result = TunedResult.load(tuned)
    if result.header.backend not in VERIFIED:
        return
    try:
        known = verification_of(tuned)
        if known.iterations and known.stack == result.header.stack:
            return
    except ArtifactError:
        print("verifying the tuned GEMMs by a dump of a few steps", flush=True)
    TunedVerification(
        tuned_sha256=sha256_file(tuned),
        stack=result.header.stack,
        iterations=ITERATIONS,
        use=watched_use(settings, result, variables, nodes=nodes_of_copy(settings)),
    ).save(verification_file(tuned))
