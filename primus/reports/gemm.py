"""GEMM problems of a training step before and after tuning, weighted by calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.artifacts.gemm import TunedHeader, TunedRow, load_shapes, load_tuned
from primus.artifacts.report import StepContestant, StepFigures, StepRatio, TuningFigures
from primus.artifacts.run import TunedUse
from primus.artifacts.steps import UNTUNED, Contestant, ProcessChoice, Ratio, Steps
from primus.files import sha256_file
from primus.reports.formats import MISSING, number

DEFAULT = "default"
USES = {
    "hit": "tuned",
    "default": "default",
    "miss": "not in the result",
    "rejection": "rejected",
    "unused": "not called",
}


@dataclass(frozen=True, kw_only=True)
class GemmRow:
    """One problem with its times per microbatch on one rank, in microseconds.

    Attributes:
        default_total, tuned_total: calls times the time of one; null where it was not timed.
    """

    found: TunedRow

    @property
    def timed(self) -> bool:
        """Both times are known."""
        return self.found.default_us is not None and self.found.tuned_us is not None

    @property
    def improved(self) -> bool:
        """Another kernel than the default was chosen."""
        return self.found.candidate != DEFAULT

    @property
    def default_total(self) -> float:
        """With the default kernel."""
        return self.found.calls * (self.found.default_us or 0.0)

    @property
    def tuned_total(self) -> float:
        """With the chosen kernel."""
        return self.found.calls * (self.found.tuned_us or 0.0)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The tuned result, largest share of the step first.

    Attributes:
        path, sha256: the file that was read.
        newer: the experiment's tuned result is by now another one than the run uses.
        foreign_shapes: the result was tuned for other shapes than those given.
    """

    path: Path
    sha256: str
    header: TunedHeader
    rows: list[GemmRow]
    newer: bool
    foreign_shapes: bool


def read_tuning(run: Path, shapes: Path | None, tuned: Path | None) -> Tuning | None:
    """Read the result that the run uses: its own copy, else the experiment's.

    Returns null where the experiment has no tuned result.

    Raises:
        ArtifactError: a file is not what it should be.
    """
    own = run / "tuned.jsonl"
    path = own if own.is_file() else tuned
    if path is None:
        return None
    header, found = load_tuned(path)
    rows = [GemmRow(found=row) for row in found]
    rows.sort(key=lambda row: (-row.default_total, -row.found.flops, row.found.text))
    if shapes is not None:
        load_shapes(shapes)
    digest = sha256_file(path)
    return Tuning(
        path=path,
        sha256=digest,
        header=header,
        rows=rows,
        newer=tuned is not None and sha256_file(tuned) != digest,
        foreign_shapes=shapes is not None and sha256_file(shapes) != header.shapes_sha256,
    )


def tuning_figures(
    tuning: Tuning | None,
    used: TunedUse | None,
    microbatches: int | None,
    seconds_per_iteration: float,
) -> TuningFigures | None:
    """Totals per microbatch, weighted by calls; null without a tuned result."""
    if tuning is None:
        return None
    timed = [row for row in tuning.rows if row.timed]
    default_us = sum(row.default_total for row in timed)
    tuned_us = sum(row.tuned_total for row in timed)
    saved = None
    if microbatches is not None and used is not None:
        seconds = (default_us - tuned_us) * microbatches / 1e6
        saved = seconds / (seconds_per_iteration + seconds)
    return TuningFigures(
        problems=len(tuning.rows),
        timed_problems=len(timed),
        improved_problems=sum(row.improved for row in timed),
        calls=sum(row.found.calls for row in tuning.rows),
        timed_calls=sum(row.found.calls for row in timed),
        microbatches=microbatches,
        default_us=default_us,
        tuned_us=tuned_us,
        saving=1 - tuned_us / default_us if default_us else None,
        expected_step_saving=saved,
        hits=used.hits if used else None,
        defaults=used.defaults if used else None,
        misses=used.misses if used else None,
        rejections=used.rejections if used else None,
        steps=_step_figures(tuning.header.steps, tuning.header.process),
    )


def _step_figures(steps: Steps | None, process: ProcessChoice | None) -> StepFigures | None:
    """From the samples in the header; null where there are none."""
    if steps is None or not steps.contestants:
        return None
    first = steps.contestants[UNTUNED]
    return StepFigures(
        rounds=len(first.all),
        contestants={
            name: StepContestant(
                median_us=one.median,
                minimum_us=one.minimum,
                ratio=None if name == UNTUNED else _ratio(one, first),
                served=one.served,
            )
            for name, one in steps.contestants.items()
        },
        process=process.candidate if process else None,
    )


def _ratio(new: Contestant, old: Contestant) -> StepRatio:
    found = Ratio.of(new, old)
    return StepRatio(
        median=found.median, low=found.low, high=found.high, significant=found.significant
    )


def in_training(used: TunedUse | None, text: str) -> dict[str, str]:
    """What became of a problem in the run: in a word, and why."""
    found = next((p for p in used.problems if p.get("problem") == text), None) if used else None
    if found is None:
        return {"word": MISSING, "why": "", "nearest": ""}
    word = USES.get(str(found.get("use")), str(found.get("use")))
    calls = f"{word}, {number(int(found.get('calls', 0)))} calls"
    return {
        "word": word if found.get("use") == "unused" else calls,
        "why": str(found.get("why", "")),
        "nearest": number(int(found["nearest"])) if found.get("nearest") else "",
    }


def strangers(used: TunedUse | None, rows: Sequence[GemmRow]) -> list[dict[str, Any]]:
    """Problems that the run called and the tuned result does not have, most calls first."""
    known = {row.found.text for row in rows}
    found = [p for p in used.problems if p.get("problem") not in known] if used else []
    return sorted(found, key=lambda problem: (-problem.get("calls", 0), problem.get("problem")))
