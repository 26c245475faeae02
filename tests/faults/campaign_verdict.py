"""What is asked of a training that was hurt, and the answers."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from campaign_run import GaveUp, Training

from primus.artifacts.run import MetricsRow, TrainManifest
from primus.errors import CheckpointError

_END_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Fallen:
    """A fault as it happened.

    Attributes:
        second: since the first start. what: to what it was done.
        iteration: the last one logged before the training went on from `resumed_from`.
        bound: iterations that it may cost at most.
        back_in: seconds until the next attempt had logged an iteration.
    """

    second: float
    fault: str
    what: str
    iteration: int
    resumed_from: int
    lost: int
    bound: int
    back_in: float

    def line(self, columns: str) -> str:
        """A row of the table."""
        cells = (self.iteration, self.resumed_from, self.lost, self.bound)
        return columns.format(
            f"{self.second:.0f}", self.fault, *cells, f"{self.back_in:.0f} s", self.what
        )


@dataclass(frozen=True)
class Question:
    """Something that must hold, and what was found."""

    name: str
    holds: bool
    detail: str


def judge(
    training: Training, undisturbed: Path, faults: Sequence[Fallen], ended_early: bool
) -> list[Question]:
    """Every question."""
    return [
        _finished(training),
        Question("it outlived the faults", not ended_early and bool(faults), f"{len(faults)} fell"),
        _bounds(faults),
        *_curves(training, undisturbed),
        _writers(training),
        _checkpoints(training),
        _report(training),
        _orphans(training),
        _temporaries(training),
    ]


def goodput(training: Training, began: float, seconds: float) -> float:
    """Share of the time under faults that went into iterations of the result."""
    counted = result(training.rows())
    until = began + seconds
    return sum(row.seconds_per_iteration for row in counted.values() if row.time < until) / seconds


def result(rows: Sequence[MetricsRow]) -> dict[int, MetricsRow]:
    """The rows that are part of the result: of an iteration that ran again the last one."""
    return {row.iteration: row for row in rows}


def _finished(training: Training) -> Question:
    if not training.finished():
        return Question("finished", False, "there is no train.json")
    found = _manifest(training)
    holds = found.iteration == training.iterations
    return Question("finished", holds, f"{found.iteration} iterations in {found.attempts} attempts")


def _manifest(training: Training) -> TrainManifest:
    assert training.directory is not None
    return TrainManifest.load(training.directory / "train.json")


def _bounds(faults: Sequence[Fallen]) -> Question:
    over = [
        f"{one.fault} cost {one.lost}, not {one.bound}" for one in faults if one.lost > one.bound
    ]
    total = sum(one.lost for one in faults)
    detail = "; ".join(over) or f"{total} iterations in all"
    return Question("no fault cost more than it may", not over, detail)


def _curves(training: Training, undisturbed: Path) -> Iterator[Question]:
    hurt = training.rows()
    expected = {row.iteration: _values(row) for row in training.rows(undisturbed)}
    differ = sorted({row.iteration for row in hurt if _values(row) != expected.get(row.iteration)})
    missing = sorted(expected.keys() - {row.iteration for row in hurt})
    again = len(hurt) - len(result(hurt))
    detail = f"{len(hurt)} rows, {again} of iterations that ran again"
    if differ or missing:
        detail += f"; differ: {differ[:5]}, missing: {missing[:5]}"
    yield Question("every row is that of the undisturbed run", not differ and not missing, detail)
    mine, other = _manifest(training), TrainManifest.load(undisturbed / "train.json")
    same = (mine.loss, mine.validation_loss) == (other.loss, other.validation_loss)
    yield Question("the last loss is bit-identical", same, f"{mine.loss!r} and {other.loss!r}")
    samples = (mine.consumed_samples, mine.consumed_tokens)
    same = samples == (other.consumed_samples, other.consumed_tokens)
    yield Question("consumed samples are equal", same, f"{mine.consumed_samples}")


def _values(row: MetricsRow) -> tuple[Any, ...]:
    return row.loss, row.lr, row.grad_norm, row.consumed_samples, row.consumed_tokens


def _writers(training: Training) -> Question:
    """Rows of two attempts that write at the same time would alternate."""
    numbers = [row.attempt for row in training.rows()]
    back = [after for before, after in pairwise(numbers) if after < before]
    detail = f"rows of attempts {back[:3]} stand after later ones" if back else "one at a time"
    return Question("one writer", not back, detail)


def _checkpoints(training: Training) -> Question:
    """All but those that were damaged on purpose and not saved again since."""
    assert training.directory is not None
    listed = {checkpoint.name for checkpoint in _manifest(training).checkpoints}
    command = (sys.executable, "-m", "primus.checkpoint", "verify", str(training.directory))
    published = {path.name for path in training.directory.glob("checkpoints/iter_*")}
    hurt = published & training.damaged - {path.name for path in training.good()}
    try:
        said = training.run(*command, status=CheckpointError.exit_code if hurt else 0)
    except GaveUp as error:
        return Question("every checkpoint verifies", False, str(error))
    good = said.count(": good\n")
    holds = good == len(published - hurt) == len(listed) > 0
    detail = f"{good} good, {len(hurt)} that a fault had damaged are named"
    return Question("every checkpoint verifies", holds, detail)


def _report(training: Training) -> Question:
    assert training.directory is not None
    path = training.directory / "report.json"
    content = json.loads(path.read_text()) if path.exists() else {"verdict": "none", "summary": ""}
    holds = content["verdict"] in ("passed", "warnings")
    return Question("its report trusts it", holds, f"{content['verdict']}: {content['summary']}")


def _orphans(training: Training) -> Question:
    end = time.monotonic() + _END_SECONDS
    while (found := training.processes()) and time.monotonic() < end:
        time.sleep(0.2)
    detail = "; ".join(" ".join(process.cmdline())[:200] for process in found) or "0"
    return Question("orphans", not found, detail)


def _temporaries(training: Training) -> Question:
    assert training.directory is not None
    # torch's cache of kernels is every run's, and what a killed Snakemake leaves is Snakemake's.
    not_ours = ("torchinductor_", "snakemake")
    temporary = (training.path / "tmp").iterdir()
    found = [path for path in temporary if not path.name.startswith(not_ours)]
    names = re.compile(r"\..*(\.tmp|deleted-\d+)|\.writer\..*")
    found += [path for path in training.directory.rglob("*") if names.fullmatch(path.name)]
    detail = ", ".join(str(path.relative_to(training.path)) for path in found[:5]) or "none"
    return Question("temporary directories", not found, detail)
