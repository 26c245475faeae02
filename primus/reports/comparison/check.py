"""Making the figures of a comparison again, to check them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primus.artifacts.comparison import ComparisonManifest
from primus.errors import ArtifactError, UserError
from primus.reports.comparison.build import compare, read_runs
from primus.reports.comparison.find import Found
from primus.reports.recheck import differences

# Who was compared, and what other files say of it: a report that was made since is no mistake.
_NO_FIGURES = {"label", "directory", "experiment", "key", "report", "warnings", "inputs"}
_WHO = {"run", "against", "words"}


def check_comparison(path: Path) -> list[str]:
    """Compute every figure of a comparison again from the files of its runs; what differs in words.

    Raises:
        UserError: a run is not where it was.
        ArtifactError: the comparison cannot be read, or a file of a run is not what was compared.
    """
    stored = ComparisonManifest.load(path)
    if len(stored.runs) < 2:
        raise ArtifactError(f"{path}: is a comparison of {len(stored.runs)} runs")
    for run in stored.runs:
        if not Path(run.directory).is_dir():
            raise UserError(
                f"{path}: {run.label}: there is no directory {run.directory}. Fix: check it from "
                "the directory in which the comparison was made, with its runs where they were"
            )
        for name, record in run.inputs.items():
            record.verify(Path(run.directory) / name)
    found = [
        Found(
            label=run.label,
            directory=Path(run.directory),
            experiment=run.experiment,
            key=run.key,
        )
        for run in stored.runs
    ]
    again = compare(read_runs(found))
    return list(differences(_figures(stored), _figures(again), "the comparison"))


def _figures(comparison: ComparisonManifest) -> dict[str, dict[str, Any]]:
    """By label of the run."""
    found = {run.label: run.model_dump(mode="json", exclude=_NO_FIGURES) for run in comparison.runs}
    for kind in ("throughput", "losses"):
        for one in getattr(comparison, kind):
            found.setdefault(one.run, {})[kind] = one.model_dump(mode="json", exclude=_WHO)
    return found
