"""What speaks against a run, so that nobody reads a comparison of it without."""

from __future__ import annotations

from collections.abc import Iterator

from primus.artifacts.report import Check
from primus.reports import watched
from primus.reports.comparison.read import Run
from primus.reports.curve import gaps, replay_differences

_FIRST = 3


def warnings_of(run: Run) -> list[Check]:
    """Every warning and failure: of its report, and of its metrics as they are now."""
    own = [check for check in _checks(run) if check.outcome in ("warning", "failed")]
    if run.report is None:
        return own
    seen = {check.name for check in own}
    reported = (c for c in run.report.checks if c.outcome in ("warning", "failed"))
    return own + [check for check in reported if check.name not in seen]


def state_of(run: Run) -> str:
    """Whether it has finished, or how its last attempt is."""
    if run.train is not None and run.train.iteration >= run.curve.train[-1].iteration:
        return "finished"
    return f"attempt {run.attempts[-1].number} {run.attempts[-1].status}" if run.attempts else "new"


def _warn(name: str, detail: str) -> Check:
    return Check(name=name, outcome="warning", detail=detail)


def _checks(run: Run) -> Iterator[Check]:
    curve, state = run.curve, state_of(run)
    if state != "finished":
        yield _warn("Finished", f"not yet ({state}): its figures are those so far")
    options = run.settings.values.get("log_interval")
    missing = gaps(curve, options if isinstance(options, int) else None)
    if missing:
        yield Check(name="Metrics complete", outcome="failed", detail="; ".join(missing[:_FIRST]))
    elif curve.bad_lines:
        where = ", ".join(curve.bad_lines[:_FIRST])
        yield _warn("Metrics complete", f"{len(curve.bad_lines)} unreadable rows: {where}")
    twice, differ = replay_differences(curve)
    if differ:
        detail = f"{len(differ)} of {twice} rows run again differ, first at iteration {differ[0]}"
        yield _warn("Restarts", detail)
    yield watched.losses(curve)
    yield from watched.noted(curve)
    yield from _of_the_manifest(run)


def _of_the_manifest(run: Run) -> Iterator[Check]:
    if run.train is None:
        return
    last = run.curve.train[-1]
    pairs = (
        ("iteration", run.train.iteration, last.iteration),
        ("consumed_tokens", run.train.consumed_tokens, last.consumed_tokens),
        ("loss", run.train.loss, run.curve.final_loss),
    )
    wrong = [f"{name} {a} in train.json, {b} in the metrics" for name, a, b in pairs if a != b]
    if wrong and state_of(run) == "finished":
        yield Check(name="Totals agree", outcome="failed", detail="; ".join(wrong))
    if run.train.key != run.identity.key:
        detail = "train.json is of another run than run.json"
        yield Check(name="Provenance", outcome="failed", detail=detail)
    used = run.train.tuned
    if used is not None and (used.misses or used.rejections):
        detail = f"{used.misses:,} calls unknown to the result, {used.rejections:,} rejected"
        yield _warn("Tuned GEMMs", detail)
    if run.train.environment.code_dirty:
        detail = "trained from a checkout with uncommitted changes: its commit does not say all"
        yield _warn("Code", detail)
    for warning in run.train.warnings:
        yield _warn("Training", warning)
