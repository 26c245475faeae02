"""Making a comparison: reading the runs, holding them against the first, writing page and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from primus.artifacts.comparison import ComparedRun, ComparisonManifest
from primus.files import atomic_write
from primus.reports.comparison.environment import environment_differences
from primus.reports.comparison.find import Found
from primus.reports.comparison.losses import loss_difference
from primus.reports.comparison.read import Run, read_run
from primus.reports.comparison.settings import differences
from primus.reports.comparison.speed import throughput_difference
from primus.reports.comparison.warnings import state_of, warnings_of
from primus.reports.headline import spread

# Of all statements about throughput, or about losses, together: with more runs each interval is
# wider (Bonferroni), so that among many there is no false one more often.
CONFIDENCE = 0.95
_NAMED = 8


def read_runs(found: Sequence[Found]) -> list[Run]:
    """Read all runs; raises as `read_run`."""
    return [read_run(one) for one in found]


def compare(runs: Sequence[Run]) -> ComparisonManifest:
    """Hold every run against the first one."""
    first, *others = runs
    confidence = 1 - (1 - CONFIDENCE) / len(others)
    return ComparisonManifest(
        runs=[_compared(run) for run in runs],
        settings=differences([run.settings for run in runs]),
        environment=environment_differences(runs),
        throughput=[throughput_difference(run, first, confidence) for run in others],
        losses=[loss_difference(run, first, confidence) for run in others],
        notes=notes_of(runs),
    )


def _compared(run: Run) -> ComparedRun:
    valid = [row.loss for row in run.curve.valid]
    shares = [row.peak_share for row in run.steady if row.peak_share is not None]
    last = run.curve.train[-1]
    losses = [row.loss for row in run.curve.train if row.loss is not None]
    return ComparedRun(
        label=run.label,
        directory=str(run.directory),
        experiment=run.identity.experiment,
        key=run.identity.key,
        state=state_of(run),
        iteration=last.iteration,
        consumed_tokens=last.consumed_tokens,
        final_loss=losses[-1] if losses else None,
        validation_loss=valid[-1] if valid else None,
        best_validation_loss=min(valid, default=None),
        rows=len(run.steady),
        warm_up_rows=run.warm_up_rows,
        tokens_per_second=spread([row.tokens_per_second for row in run.steady]),
        tflops_per_second=spread([row.tflops_per_second for row in run.steady]),
        peak_share=spread(shares) if shares else None,
        devices=run.devices,
        flops_per_token=run.train.flops_per_token if run.train else None,
        report=run.report.verdict if run.report else None,
        warnings=warnings_of(run),
        inputs=run.inputs,
    )


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What to keep in mind when reading of several runs."""
    return list(_notes(runs))


def some(labels: Sequence[str]) -> str:
    """The first labels in a sentence, and how many more there are."""
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(labels[:_NAMED]) + more


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    if len({run.curve.train[-1].consumed_tokens for run in runs}) > 1:
        yield (
            "The runs have consumed different numbers of tokens: compare losses where the curves "
            "have both, not at their ends."
        )
    if len({run.train.data_fingerprint for run in runs if run.train}) > 1:
        yield "They were trained and validated on different texts."
    if lost := [run.label for run in runs if not run.settings.complete]:
        yield (
            f"Not all frozen settings of the stages before the training are there any more of "
            f"{some(lost)}; only what is known is compared."
        )
    if unverified := [run.label for run in runs if run.report is None]:
        yield (
            f"There is no report of the files as they are now of {some(unverified)}: "
            "checkpoints and data have not been verified."
        )


def write(comparison: ComparisonManifest, runs: Sequence[Run], output: Path) -> None:
    """Write the page, and the JSON file beside it."""
    from primus.reports.comparison.page import render  # matplotlib, which the table does without

    comparison.save(output.with_suffix(".json"))
    with atomic_write(output) as stream:
        stream.write(render(comparison, runs))
