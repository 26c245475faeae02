"""One call brings a run to its end: checks, ranks, verification, manifest. No torch here."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from primus.artifacts.provenance import code_version, libraries
from primus.artifacts.run import RunIdentity, TrainManifest, read_attempts
from primus.artifacts.tokens import SamplesManifest, TokenizerManifest
from primus.artifacts.weights import WeightsManifest
from primus.config.frozen import StageSettings
from primus.container.spec import Container
from primus.errors import DataError
from primus.files import atomic_write, canonical_json
from primus.launch import (
    Ranks,
    platform_environment,
    run_ranks,
    thread_environment,
    trainer_imports,
)
from primus.ranks.ends import oom_kills
from primus.ranks.progress import HANG, STACKS, START
from primus.trainer import run_directory
from primus.trainer.before_ranks import recorded
from primus.trainer.lease import check_free
from primus.trainer.outcome import finished, port_was_taken, require_completed, train_manifest
from primus.trainer.restarts import refuse_endless

# Between the choice of a port and its use somebody else may take it.
_PORTS = 3


def train(
    settings: StageSettings,
    directory: Path,
    *,
    settings_path: Path,
    samples_path: Path,
    tokenizer_path: Path,
    tuned_path: Path | None,
    weights_path: Path | None = None,
    activate: Callable[[Path], Mapping[str, str]] | None = None,
    check_nodes: Callable[[Path], None] | None = None,
) -> TrainManifest:
    """Bring the run in `directory` to `train_iters` and return its manifest.

    Args:
        activate: called with the run's tuned result before ranks start; gives the variables
            under which they use it.
        check_nodes: called with the attempt's directory before ranks start; raises where they
            should not.

    Raises:
        DataError: the tokenizer has more ids than the model's vocabulary.
        RunConflictError: the directory belongs to another run, or another process writes to it.
        TrainingError: the attempt ended early.
    """
    samples = SamplesManifest.load(samples_path)
    tokenizer = fitting_tokenizer(tokenizer_path, settings)
    check_free(directory)
    tuned, tuned_sha256 = run_directory.adopt_tuned(directory, tuned_path)
    identity = RunIdentity(
        experiment=settings.experiment,
        key=settings.key,
        settings=settings.identity,
        samples_fingerprint=samples.fingerprint,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tuned_sha256=tuned_sha256,
        weights_fingerprint=weights_path and WeightsManifest.load(weights_path).fingerprint,
    )
    run_directory.claim(directory, identity)
    if not finished(directory, settings):
        refuse_endless(directory)
        attempt, began = run_directory.new_attempt(directory), time.time()
        _write_about(attempt, directory, identity, settings.identity | settings.extent)
        with recorded(attempt, settings.nodes * settings.nproc_per_node):
            if check_nodes is not None:
                check_nodes(attempt)
        arguments = ["--began", str(began)]
        arguments += _arguments(settings, attempt, settings_path, samples_path, tuned, weights_path)
        variables = dict(activate(tuned)) if activate is not None and tuned is not None else {}
        arguments += ["--variables", canonical_json(variables)]
        ranks = _ranks(settings, attempt, arguments, variables, weights_path)
        require_completed(directory, settings, start_ranks(ranks))
    return train_manifest(directory, settings, identity, samples)


def fitting_tokenizer(path: Path, settings: StageSettings) -> TokenizerManifest:
    """The tokenizer of a training.

    Raises:
        DataError: it has more ids than the model's vocabulary.
    """
    tokenizer = TokenizerManifest.load(path)
    if tokenizer.vocab_size > settings.vocab_size:
        raise DataError(
            f"{path}: vocab_size = {tokenizer.vocab_size} ids do not fit into the model's "
            f"vocab_size = {settings.vocab_size}. Fix: raise vocab_size in the model's file"
        )
    return tokenizer


def start_ranks(ranks: Ranks, *, limit: float | None = None) -> int:
    """Start the ranks; with another port where the first was taken before they could meet.

    Args:
        limit: as `run_ranks`, of each start.
    """
    ooms = oom_kills()
    for _ in range(_PORTS - 1):
        status = run_ranks(ranks, limit=limit)
        if not port_was_taken(ranks.log_directory):
            break
        print("the port is taken; trying another one", flush=True)
    else:
        status = run_ranks(ranks, limit=limit)
    killed_for_memory = status == -signal.SIGKILL and oom_kills() > ooms
    return os.EX_OSERR if killed_for_memory else status


def _write_about(
    attempt: Path, directory: Path, identity: RunIdentity, settings: dict[str, Any]
) -> None:
    commit, dirty = code_version()
    about = {
        "key": identity.key,
        "settings": settings,
        "parent": run_directory.newest_checkpoint(directory),
        "samples_fingerprint": identity.samples_fingerprint,
        "tokenizer_fingerprint": identity.tokenizer_fingerprint,
        "tuned_sha256": identity.tuned_sha256,
        "code_commit": commit,
        "code_dirty": dirty,
        "libraries": libraries(),
    }
    with atomic_write(attempt / "about.json") as stream:
        json.dump(about, stream, indent=2, sort_keys=True)


def _arguments(
    settings: StageSettings,
    attempt: Path,
    settings_path: Path,
    samples: Path,
    tuned: Path | None,
    weights: Path | None,
) -> list[str]:
    directory = attempt.parent.parent
    return [
        *("--settings", str(settings_path), "--options", canonical_json(settings.options)),
        *("--samples", str(samples), "--run-directory", str(directory)),
        *("--attempt", str(int(attempt.name)), "--about", str(attempt / "about.json")),
        *(("--tuned", str(tuned)) if tuned else ()),
        *(("--weights", str(weights)) if weights else ()),
    ]


def _patience(settings: StageSettings, logs: Path) -> dict[str, str]:
    """Variables by which ranks, or their agents, notice one that does not get on."""
    if settings.hang_timeout_minutes is None:
        return {}
    return {
        HANG: str(60 * settings.hang_timeout_minutes),
        START: str(60 * settings.start_timeout_minutes),
        # Of a rank without an agent.
        STACKS: str(logs / "stacks.txt"),
    }


def training_ranks(
    settings: StageSettings,
    directory: Path,
    *,
    module: str,
    arguments: list[str],
    variables: Mapping[str, str],
    weights: Path | None,
    warn_before: Callable[[], float] | None = None,
) -> Ranks:
    """The ranks of a training: its nodes, layout, environment and container.

    Args:
        directory: the ranks write below its logs/.
        module, arguments: what each of them runs.
        variables: those of the tuned result.
        weights: manifest of the start weights, which a container has to see.
        warn_before: as in `Ranks`.
    """
    models = [Path(WeightsManifest.load(weights).directory)] if weights else []
    logs = directory / "logs"
    return Ranks(
        module=module,
        arguments=arguments,
        nproc_per_node=settings.nproc_per_node,
        nodes=settings.nodes,
        environment=_patience(settings, logs)
        | thread_environment(settings.threads_per_rank)
        | platform_environment(settings.platform)
        | settings.env.as_dict()
        | variables,
        log_directory=logs,
        imports=trainer_imports(settings.platform),
        container=Container.of(settings, paths=models),
        warn_before=warn_before,
    )


def _ranks(
    settings: StageSettings,
    attempt: Path,
    arguments: list[str],
    variables: Mapping[str, str],
    weights: Path | None,
) -> Ranks:
    return training_ranks(
        settings,
        attempt,
        module="primus.train_rank",
        arguments=arguments,
        variables=variables,
        weights=weights,
        warn_before=partial(_warning, settings, attempt.parent.parent)
        if settings.slurm.warning_seconds
        else None,
    )


def _warning(settings: StageSettings, directory: Path) -> float:
    """Seconds that the ranks need to finish an iteration and to save, by what saves took so far."""
    saves = [attempt.longest_save_seconds for attempt in read_attempts(directory)]
    return float(settings.slurm.warning_seconds + 1.5 * max(saves, default=0.0))
