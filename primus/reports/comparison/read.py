"""Reading one run for a comparison: finished or not, with a report or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from primus.artifacts.manifest import FileRecord
from primus.artifacts.report import ReportManifest
from primus.artifacts.run import Attempt, MetricsRow, RunIdentity, TrainManifest, read_attempts
from primus.errors import ArtifactError
from primus.files import read_json
from primus.reports.comparison.find import Found
from primus.reports.comparison.settings import Known, known_settings
from primus.reports.curve import Curve, read_metrics

# Of an attempt: kernels are compiled, memory settles, caches fill.
WARM_UP_ITERATIONS = 10
SETTINGS = Path("output") / "settings"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a comparison knows of a run.

    Attributes:
        train: null before it has finished.
        about: what the last attempt wrote of itself when it began.
        steady: rows after the warm-up of their attempt. warm_up_rows: how many are not.
        report: of its files as they are now; null where there is none.
        inputs: hashes of the files of the run that were read.
    """

    label: str
    directory: Path
    identity: RunIdentity
    train: TrainManifest | None
    attempts: list[Attempt]
    about: dict[str, Any]
    curve: Curve
    steady: list[MetricsRow]
    settings: Known
    report: ReportManifest | None
    inputs: dict[str, FileRecord]

    @property
    def warm_up_rows(self) -> int:
        """Rows that are left out of rates."""
        return len(self.curve.train) - len(self.steady)

    @property
    def devices(self) -> int:
        """Ranks of the last attempt; one where no attempt left a record."""
        return self.attempts[-1].world_size if self.attempts else 1

    def tokens_at(self, iteration: int) -> float:
        """Tokens consumed up to an iteration; its batches have one size all along."""
        last = self.curve.train[-1]
        return iteration * last.consumed_tokens / max(last.iteration, 1)


def read_run(found: Found) -> Run:
    """Read a run.

    Raises:
        ArtifactError: a file of it is missing or damaged, or it holds no training row.
    """
    directory = found.directory
    identity = RunIdentity.load(directory / "run.json")
    train_path = directory / "train.json"
    train = TrainManifest.load(train_path) if train_path.is_file() else None
    attempts = read_attempts(directory)
    about = _about(directory, attempts)
    curve = read_metrics(directory / "metrics.jsonl", attempts)
    names = ("run.json", "metrics.jsonl", *(("train.json",) if train else ()))
    inputs = {name: FileRecord.of(directory / name) for name in names}
    recorded = train.settings if train else about.get("settings", identity.settings)
    return Run(
        label=found.label,
        directory=directory,
        identity=identity,
        train=train,
        attempts=attempts,
        about=about,
        curve=curve,
        steady=steady(curve),
        settings=known_settings(_settings_of(directory), identity, recorded),
        report=_report(directory, inputs),
        inputs=inputs,
    )


def _settings_of(directory: Path) -> list[Path]:
    """Where frozen settings of a run may lie: with it, and, for one that was moved away, here."""
    beside = directory.resolve().parent.parent.parent / "settings"
    return list(dict.fromkeys([beside, SETTINGS.resolve()]))


def _about(directory: Path, attempts: list[Attempt]) -> dict[str, Any]:
    if not attempts:
        return {}
    path = directory / "attempts" / f"{attempts[-1].number:03d}" / "about.json"
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _report(directory: Path, inputs: Mapping[str, FileRecord]) -> ReportManifest | None:
    """The run's report, failed ones included, where it is of the files as they are."""
    for name in ("report.json", "report.failed.json"):
        try:
            report = ReportManifest.load(directory / name)
        except ArtifactError:
            continue
        if all(report.inputs.get(file) == record for file, record in inputs.items()):
            return report
    return None


def steady(curve: Curve) -> list[MetricsRow]:
    """The rows whose iterations all came after the warm-up of their attempt.

    Of a run so short that this would leave less than half of its rows, only the first row of each
    attempt is left out; of one with no more rows than attempts, none is.
    """
    late = list(_late(curve))
    if 2 * len(late) >= len(curve.train):
        return late
    later = [
        row
        for _, rows in groupby(curve.train, key=lambda row: row.attempt)
        for row in list(rows)[1:]
    ]
    return later or list(curve.train)


def _late(curve: Curve) -> Iterator[MetricsRow]:
    base = {span.attempt: span.base for span in curve.spans}
    for row, count in curve.covered():
        if row.iteration - count - base.get(row.attempt, 0) >= WARM_UP_ITERATIONS:
            yield row
