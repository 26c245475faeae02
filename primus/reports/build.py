"""Making a report, and making its figures again to check them."""

from __future__ import annotations

import math
import os
from pathlib import Path

from primus.artifacts.report import Headline, ReportManifest
from primus.errors import ArtifactError
from primus.files import atomic_write
from primus.reports.headline import compute_headline
from primus.reports.inputs import Inputs, Paths, read_inputs
from primus.reports.integrity import Judgement, judge
from primus.reports.recheck import differences
from primus.reports.watched import SampleOrder

GIB = float(2**30)


def build_report(
    paths: Paths,
    output: Path,
    *,
    hash_gib: float = math.inf,
    loss_png: Path | None = None,
    order: SampleOrder | None = None,
) -> ReportManifest:
    """Write `output` (HTML) and the JSON file beside it.

    Args:
        hash_gib: how much of the checkpoints may be hashed, newest first.
        order: in which samples are to be consumed: (seed, pass, size) → ids; None: not asked.
        loss_png: where to put the loss curve as a picture, if anywhere.

    Raises:
        ArtifactError: an input cannot be read; or the inputs contradict each other, in which case
            the report is written as `<name>.failed.html` and the message names it.
    """
    inputs = read_inputs(paths)
    headline = compute_headline(inputs)
    judgement = judge(inputs, headline, hash_gib * GIB, order)
    failed = output.with_name(f"{output.stem}.failed{output.suffix}")
    target = failed if judgement.verdict == "failed" else output
    manifest = _write(inputs, headline, judgement, target)
    if loss_png is not None:
        from primus.reports.figures import save_loss_png

        save_loss_png(inputs, loss_png)
    if target is failed:
        raise ArtifactError(f"{paths.train}: {judgement.summary} See {failed}")
    for stale in (failed, failed.with_suffix(".json")):
        stale.unlink(missing_ok=True)
    return manifest


def _write(
    inputs: Inputs,
    headline: Headline,
    judgement: Judgement,
    target: Path,
) -> ReportManifest:
    from primus.reports.page import render  # matplotlib, which --check does without

    directory = target.parent
    manifest = ReportManifest(
        experiment=inputs.train.experiment,
        key=inputs.train.key,
        verdict=judgement.verdict,
        summary=judgement.summary,
        checks=judgement.checks,
        headline=headline,
        inputs={os.path.relpath(path, directory): rec for path, rec in inputs.read.items()},
        arguments=inputs.paths.relative_to(directory),
    )
    manifest.save(target.with_suffix(".json"))
    with atomic_write(target) as stream:
        stream.write(render(inputs, headline, judgement))
    return manifest


def check_report(path: Path) -> list[str]:
    """Compute every headline figure of a report again; the differences in words.

    Raises:
        ArtifactError: the report or one of its inputs cannot be read.
    """
    report = ReportManifest.load(path)
    for name, record in report.inputs.items():
        record.verify(path.parent / name)
    inputs = read_inputs(Paths.from_relative(report.arguments, path.parent))
    again = compute_headline(inputs).model_dump(mode="json")
    return list(differences(report.headline.model_dump(mode="json"), again, "the report"))
