"""Reading everything that a report is made of."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import Self

from primus.artifacts.ab import AbManifest
from primus.artifacts.evaluation import EvaluationManifest
from primus.artifacts.manifest import FileRecord
from primus.artifacts.preflight import Preflight
from primus.artifacts.run import (
    Attempt,
    CheckpointManifest,
    RunIdentity,
    TrainManifest,
    read_attempts,
)
from primus.artifacts.timing import times_path
from primus.artifacts.tokens import DataManifest, SamplesManifest, TokenizerManifest
from primus.config.frozen import StageSettings
from primus.errors import ArtifactError
from primus.files import parse_json, read_json
from primus.reports.budget import Phase, phases
from primus.reports.curve import Curve, read_metrics
from primus.reports.gemm import Tuning, read_tuning


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where the inputs lie; null for an optional one that the experiment does not have."""

    train: Path
    samples: Path
    data: Path
    tokenizer: Path
    shapes: Path | None = None
    tuned: Path | None = None
    export: Path | None = None
    evaluation: Path | None = None
    ab: Path | None = None
    stage_settings: tuple[Path, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """The paths that the command line names."""
        values = {field.name: getattr(args, field.name) for field in fields(cls)}
        return cls(**values | {"stage_settings": tuple(args.stage_settings or ())})

    def relative_to(self, directory: Path) -> dict[str, list[str]]:
        """The paths by option name, as seen from `directory`."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {
            name: list(value) if isinstance(value, tuple) else [value] if value else []
            for name, value in named.items()
        }
        return {
            name: [os.path.relpath(path, directory) for path in paths]
            for name, paths in lists.items()
        }

    @classmethod
    def from_relative(cls, arguments: Mapping[str, Sequence[str]], directory: Path) -> Self:
        """Undo `relative_to`."""
        values: dict[str, Any] = {
            name: directory / paths[0]
            for name, paths in arguments.items()
            if paths and name != "stage_settings"
        }
        settings = tuple(directory / path for path in arguments.get("stage_settings", ()))
        return cls(**values, stage_settings=settings)


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """All runs of one stage for this artefact; seconds of the last successful one and of all."""

    stage: str
    runs: int
    failed: int
    seconds: float
    total: float
    host: str


@dataclass(frozen=True, kw_only=True)
class StageValues:
    """The frozen settings of one stage as they stand in its file."""

    stage: str
    key: str
    identity: dict[str, Any]
    extent: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that the train manifest lists; `manifest` is null where it cannot be read."""

    name: str
    directory: Path
    manifest: CheckpointManifest | None


@dataclass(frozen=True, kw_only=True)
class Export:
    """The Hugging Face directory: its manifest as plain JSON."""

    content: dict[str, Any]
    directory: Path


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that a report is made of, parsed but not yet believed.

    Attributes:
        preflights: by number of the attempt what was found of its nodes.
        read: hash of every input file, by path as given.
    """

    paths: Paths
    identity: RunIdentity
    train: TrainManifest
    samples: SamplesManifest
    data: DataManifest
    tokenizer: TokenizerManifest
    curve: Curve
    attempts: list[Attempt]
    preflights: dict[int, Preflight]
    checkpoints: list[Checkpoint]
    unlisted: list[str]
    tuning: Tuning | None
    export: Export | None
    evaluation: EvaluationManifest | None
    ab: AbManifest | None
    settings: list[StageValues]
    times: list[StageTime]
    read: dict[Path, FileRecord]

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.paths.train.parent

    @cached_property
    def phases(self) -> dict[int, list[Phase]]:
        """What each attempt was at when."""
        return phases(self.attempts, self.curve)

    def setting(self, stage: str, name: str) -> Any:
        """The value of a setting of a stage; null where the report was not given it."""
        for values in self.settings:
            if values.stage == stage:
                merged = values.identity | values.extent | values.options
                return merged.get(name)
        return None


def read_inputs(paths: Paths) -> Inputs:
    """Read all inputs.

    Raises:
        ArtifactError: a required file is missing or of another kind or version.
    """
    run = paths.train.parent
    train = TrainManifest.load(paths.train)
    attempt_files = sorted((run / "attempts").glob("*/attempt.json"))
    preflight_files = sorted((run / "attempts").glob("*/preflight.json"))
    attempts = read_attempts(run)
    listed = {summary.name for summary in train.checkpoints}
    on_disk = sorted(path.name for path in (run / "checkpoints").glob("*") if path.is_dir())
    return Inputs(
        paths=paths,
        identity=RunIdentity.load(run / "run.json"),
        train=train,
        samples=SamplesManifest.load(paths.samples),
        data=DataManifest.load(paths.data),
        tokenizer=TokenizerManifest.load(paths.tokenizer),
        curve=read_metrics(run / "metrics.jsonl", attempts),
        attempts=attempts,
        preflights=_preflights(preflight_files),
        checkpoints=[_checkpoint(run / "checkpoints" / name) for name in sorted(listed)],
        unlisted=[name for name in on_disk if name not in listed],
        tuning=read_tuning(run, paths.shapes, paths.tuned),
        export=_export(paths.export),
        evaluation=EvaluationManifest.load(paths.evaluation) if paths.evaluation else None,
        ab=AbManifest.load(paths.ab) if paths.ab else None,
        settings=[_stage_values(path) for path in paths.stage_settings],
        times=stage_times(paths),
        read=_records([*_files(paths), *_run_files(run), *attempt_files, *preflight_files]),
    )


def _preflights(paths: Sequence[Path]) -> dict[int, Preflight]:
    """By number of the attempt; a damaged one says as little as none."""
    found = {}
    for path in paths:
        with suppress(ArtifactError):
            found[int(path.parent.name)] = Preflight.load(path)
    return found


def _files(paths: Paths) -> list[Path]:
    single = (paths.train, paths.samples, paths.data, paths.tokenizer)
    optional = (paths.shapes, paths.tuned, paths.export, paths.evaluation, paths.ab)
    return [*single, *(path for path in optional if path), *paths.stage_settings]


def _run_files(run: Path) -> list[Path]:
    own = [run / "tuned.jsonl"]
    return [run / "run.json", run / "metrics.jsonl", *(path for path in own if path.is_file())]


def _records(paths: Sequence[Path]) -> dict[Path, FileRecord]:
    return {path: FileRecord.of(path) for path in paths}


def _checkpoint(directory: Path) -> Checkpoint:
    try:
        manifest = CheckpointManifest.load(directory / "manifest.json")
    except ArtifactError:
        manifest = None
    return Checkpoint(name=directory.name, directory=directory, manifest=manifest)


def _json_object(path: Path, what: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot read the {what}: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: not a {what}: not a JSON object")
    return content


def _export(path: Path | None) -> Export | None:
    if path is None:
        return None
    return Export(content=_json_object(path, "export manifest"), directory=path.parent)


def _stage_values(path: Path) -> StageValues:
    content = _json_object(path, "settings file")
    stage: Any = content.get("stage")
    found = StageSettings.load(path, stage)
    names = ("stage", "key", "identity", "extent", "options")
    return StageValues(**{name: getattr(found, name) for name in names})


def stage_times(paths: Paths) -> list[StageTime]:
    """Run times of every stage before the report, from the files beside their artefacts."""
    artefacts = (paths.tokenizer, paths.data, paths.samples, paths.shapes, paths.tuned)
    later = (paths.train, paths.export, paths.evaluation, paths.ab)
    found = [_stage_time(path) for path in (*artefacts, *later) if path]
    return [time for time in found if time]


def _stage_time(artefact: Path) -> StageTime | None:
    path = times_path(artefact)
    if not path.is_file():
        return None
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = parse_json(text)
            stage, seconds = str(line["stage"]), float(line["seconds"])
            lines.append((stage, seconds, bool(line["succeeded"]), str(line.get("host", ""))))
        except (ValueError, KeyError, TypeError):
            continue  # a line torn by a kill; the times are information, not evidence
    if not lines:
        return None
    good = [seconds for _, seconds, succeeded, _ in lines if succeeded]
    stage, latest, _, host = lines[-1]
    return StageTime(
        stage=stage,
        runs=len(lines),
        failed=len(lines) - len(good),
        seconds=good[-1] if good else latest,
        total=sum(seconds for _, seconds, _, _ in lines),
        host=host,
    )
