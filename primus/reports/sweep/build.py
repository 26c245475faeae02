"""From the points of a sweep to what can be said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from primus.artifacts.comparison import LossDifference
from primus.artifacts.sweep import Measure, SweepManifest, SweptPoint
from primus.config.sweep import PlannedSweep
from primus.files import atomic_write
from primus.reports.budget import device_hours, wall_seconds
from primus.reports.comparison.build import CONFIDENCE, notes_of, some
from primus.reports.comparison.losses import LAST_SHARE, loss_difference
from primus.reports.comparison.read import Run
from primus.reports.formats import number
from primus.reports.headline import spread
from primus.reports.sweep.read import Swept


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """Finished points from the best one on, unless their losses are not the same thing."""

    finished: list[Swept]
    measure: Measure
    comparable: bool
    differences: Mapping[str, LossDifference]


def report_on(planned: PlannedSweep, swept: Sequence[Swept]) -> tuple[SweepManifest, list[Swept]]:
    """What the sweep's report holds, and the points in its order."""
    ranking = _rank(swept)
    rest = [one for one in swept if not one.finished]
    ordered = [*ranking.finished, *sorted(rest, key=lambda one: one.run is None)]
    sweep = planned.sweep
    keys = list(dict.fromkeys(key for point in sweep.points for key in point.values))
    named = ranking.comparable and ranking.finished
    manifest = SweepManifest(
        name=sweep.name,
        experiment=sweep.experiment,
        digest=planned.digest,
        varied=list(sweep.varied),
        same={key: _value(swept[0], key) for key in keys if key not in sweep.varied},
        measure=ranking.measure,
        points=[_point(one, keys, ranking.differences.get(one.key)) for one in ordered],
        best=ranking.finished[0].point.label if named else None,
        words=list(_words(ranking, rest)),
        notes=notes_of([one.run for one in ranking.finished if one.run is not None]),
    )
    return manifest, ordered


def write(manifest: SweepManifest, ordered: Sequence[Swept], output: Path) -> None:
    """Write the page, and the JSON file beside it."""
    from primus.reports.sweep.page import render  # matplotlib, which the table does without

    manifest.save(output.with_suffix(".json"))
    with atomic_write(output) as stream:
        stream.write(render(manifest, ordered, output))


def validation_loss(run: Run) -> float | None:
    """The last one."""
    return run.curve.valid[-1].loss if run.curve.valid else None


def training_loss(run: Run) -> float | None:
    """Mean over the last quarter of the tokens: that of one batch says little."""
    rows = run.curve.train
    begin = (1 - LAST_SHARE) * rows[-1].consumed_tokens
    late = [row.loss for row in rows if row.consumed_tokens > begin and row.loss is not None]
    return fmean(late) if late else None


def _rank(swept: Sequence[Swept]) -> _Ranking:
    runs = {one.key: one.run for one in swept if one.finished and one.run is not None}
    validated = all(validation_loss(run) is not None for run in runs.values())
    measure: Measure = "validation" if validated else "training"
    loss_of = validation_loss if validated else training_loss

    def order(one: Swept) -> float:
        loss = loss_of(runs[one.key])
        return math.inf if loss is None or math.isnan(loss) else loss

    finished = sorted((one for one in swept if one.key in runs), key=order)
    comparable = len({run.identity.tokenizer_fingerprint for run in runs.values()}) < 2
    differences = {}
    if comparable and len(finished) > 1:
        confidence = 1 - (1 - CONFIDENCE) / (len(finished) - 1)
        best = runs[finished[0].key]
        for one in finished[1:]:
            differences[one.key] = loss_difference(runs[one.key], best, confidence)
    return _Ranking(
        finished=finished, measure=measure, comparable=comparable, differences=differences
    )


def _point(one: Swept, keys: Sequence[str], difference: LossDifference | None) -> SweptPoint:
    run = one.run
    common: dict[str, Any] = {
        "label": one.point.label,
        "values": {key: _value(one, key) for key in keys},
        "directory": str(one.directory),
        "key": one.key,
        "state": one.state,
        "finished": one.finished,
        "train_iters": one.plan.settings.train_iters,
    }
    if run is None:
        return SweptPoint(**common)
    last = run.curve.train[-1]
    losses = [row.loss for row in run.curve.valid]
    return SweptPoint(
        **common,
        iteration=last.iteration,
        consumed_tokens=last.consumed_tokens,
        training_loss=training_loss(run),
        validation_loss=validation_loss(run),
        best_validation_loss=min(losses, default=None),
        tokens_per_second=spread([row.tokens_per_second for row in run.steady]),
        wall_seconds=_wall_seconds(run),
        device_hours=device_hours(run.attempts, run.curve),
        report=run.report.verdict if run.report else None,
        difference=difference,
        inputs=run.inputs,
    )


def _value(one: Swept, key: str) -> Any:
    """What a dotted key has come to, whoever set it."""
    value: Any = one.plan.settings
    for name in key.split("."):
        value = getattr(value, name, None)
    return value.model_dump() if hasattr(value, "model_dump") else value


def _wall_seconds(run: Run) -> float | None:
    if not run.attempts:
        return run.train.seconds if run.train else None
    return wall_seconds(run.attempts, run.curve)


def _words(ranking: _Ranking, rest: Sequence[Swept]) -> Iterator[str]:
    finished, measure = ranking.finished, ranking.measure
    if rest:
        labels = [one.point.label for one in rest]
        yield f"{len(rest)} of {len(rest) + len(finished)} points not finished: {some(labels)}."
    if not finished:
        return
    if not ranking.comparable:
        yield "Their tokenizers differ, so a loss per token is not the same thing in all of them."
        return
    loss_of = validation_loss if measure == "validation" else training_loss
    losses = [loss_of(one.run) for one in finished if one.run is not None]
    labels = [one.point.label for one in finished]
    first = f"Best {measure} loss: {labels[0]}, {number(losses[0])} nats per token"
    if len(finished) == 1:
        yield f"{first}; no other point has finished."
        return
    if losses[0] is not None and losses[1] is not None:
        first += f"; next: {labels[1]}, {losses[1] - losses[0]:.3g} higher"
    yield f"{first}."
    apart = [ranking.differences[one.key] for one in finished[1:]]
    yield apart[0].words
    unclear = [one.run for one in apart if not one.equal_rows and not _told(one)]
    if len(apart) > 1:
        yield (
            f"By their training losses all others differ from {labels[0]} by more than noise."
            if not unclear
            else f"Not told apart from {labels[0]} by their training losses: {some(unclear)}."
        )


def _told(difference: LossDifference) -> bool:
    return difference.mean is not None and difference.mean.significant
