"""The report of a run on a bench."""

from __future__ import annotations

from trainer_run import Run

from primus.artifacts.report import Check
from primus.dataset.order import sample_order
from primus.errors import ArtifactError
from primus.reports.build import build_report
from primus.reports.inputs import Paths


def page_of(run: Run) -> str:
    """The page, whatever its verdict."""
    output = run.directory / "report.html"
    paths = Paths(
        train=run.directory / "train.json",
        samples=run.bench.samples,
        data=run.bench.path / "data/manifest.json",
        tokenizer=run.bench.tokenizer,
    )
    try:
        build_report(paths, output, order=sample_order)
    except ArtifactError:
        output = output.with_name("report.failed.html")
    return output.read_text()


def checks_of(run: Run) -> dict[str, Check]:
    """Its checks by name."""
    from primus.artifacts.report import ReportManifest

    page_of(run)
    failed = run.directory / "report.failed.json"
    path = failed if failed.exists() else run.directory / "report.json"
    return {check.name: check for check in ReportManifest.load(path).checks}
