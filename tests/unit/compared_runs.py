"""Runs on disk with settings of their own, for tests of comparisons."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from primus.config.identity import closure, identities
from primus.config.load import load
from primus.config.paths import settings_file
from primus.config.pipeline import freeze
from tests.unit.report_run import RunSpec, write_run

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT = "llama3_8B_tiny"
Rows = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def write_compared(
    root: Path,
    *,
    experiment: str = EXPERIMENT,
    values: Mapping[str, Any] | None = None,
    spec: RunSpec | None = None,
    settings: bool = True,
) -> Path:
    """A finished run under `root`/output/runs, with frozen settings of every stage behind it.

    Args:
        values: of the experiment, instead of those in its file.
        settings: whether to leave the frozen settings.
    """
    spec = spec or RunSpec(experiment=experiment)
    scratch = root / "scratch"
    paths = write_run(scratch, spec)
    given = {"hardware": "cpu", **(values or {})}
    resolved = load(experiment, given, root=REPOSITORY, stages=()).settings
    made = identities(resolved)
    train = made["train"]
    for stage in closure(resolved, "report") if settings else ():
        freeze(made[stage], root / settings_file(made[stage]))
    run = root / "output" / "runs" / experiment / train.key
    run.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(paths.train.parent, run)
    shutil.rmtree(scratch)
    tuned = resolved.gemm_tuning.enabled and spec.tuning
    edit(run / "run.json", key=train.key, settings=dict(train.identity))
    edit(run / "train.json", key=train.key, settings={**train.identity, **train.extent})
    if not tuned:
        edit(run / "run.json", tuned_sha256=None)
    return run


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def faster(factor: float) -> Rows:
    """The same rows with another throughput."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["type"] == "train":
                row["tokens_per_second"] *= factor
        return rows

    return change
