"""The questions that a report asks of a run; a "failed" answer makes it untrustworthy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from primus.artifacts.manifest import FileRecord
from primus.artifacts.report import Check, Headline, Outcome, Verdict
from primus.artifacts.steps import TUNED
from primus.reports import watched
from primus.reports.curve import gaps, replay_differences
from primus.reports.inputs import Inputs
from primus.reports.nodes import nodes_checked
from primus.reports.verify import Verified, file_problems, verify_checkpoints

FLOPS_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All checks, the verdict that follows, and the checkpoints as verified."""

    verdict: Verdict
    summary: str
    checks: list[Check]
    checkpoints: list[Verified]


def judge(
    inputs: Inputs,
    headline: Headline,
    hash_bytes: float,
    order: watched.SampleOrder | None = None,
) -> Judgement:
    """Ask every question.

    Args:
        hash_bytes: how much of the checkpoints may be hashed.
        order: in which the samples are to be consumed; None: that is not asked.
    """
    checkpoints = verify_checkpoints(inputs.train, inputs.checkpoints, hash_bytes)
    checks = [
        _finished(inputs),
        _target(headline),
        _complete(inputs),
        _agree(inputs),
        _checkpoints(checkpoints, inputs),
        _provenance(inputs),
        _data_files(inputs),
        watched.samples_consumed(inputs, order),
        watched.losses(inputs.curve),
        _learnt(headline),
        _replays(inputs),
        _tuned(inputs, headline),
        *_steps(headline),
        _export(inputs),
        *_evaluation(inputs),
        *nodes_checked(inputs),
        *_ab(inputs),
        *watched.noted(inputs.curve),
        *_noted(inputs, headline),
    ]
    outcomes = {check.outcome for check in checks}
    verdict: Verdict = (
        "failed" if "failed" in outcomes else "warnings" if "warning" in outcomes else "passed"
    )
    return Judgement(
        verdict=verdict,
        summary=_summary(headline, checks, verdict),
        checks=checks,
        checkpoints=checkpoints,
    )


def _summary(headline: Headline, checks: Sequence[Check], verdict: Verdict) -> str:
    if verdict == "failed":
        wrong = (check.detail.rstrip(".") for check in checks if check.outcome == "failed")
        return " ".join(f"{detail[:1].upper()}{detail[1:]}." for detail in wrong)
    parts = [f"Finished after {headline.iterations:,} iterations, and the files bear it out."]
    if headline.validation_loss is not None:
        parts.append(f"Validation loss {headline.validation_loss:.3f} nats per token.")
    warnings = sum(check.outcome == "warning" for check in checks)
    if warnings:
        parts.append(f"{warnings} warning{'s' if warnings > 1 else ''} below.")
    return " ".join(parts)


def _check(name: str, outcome: Outcome, detail: str) -> Check:
    return Check(name=name, outcome=outcome, detail=detail)


def _finished(inputs: Inputs) -> Check:
    name = "Finished"
    if not inputs.attempts:
        return _check(name, "failed", "the run has no attempt on record")
    last = inputs.attempts[-1]
    if last.status != "completed":
        return _check(name, "failed", f"attempt {last.number} is {last.status}: {last.reason}")
    return _check(name, "ok", f"attempt {last.number} completed: {last.reason or 'no remark'}")


def _target(headline: Headline) -> Check:
    name, done, wanted = "Target reached", headline.iterations, headline.train_iters
    if wanted is None:
        return _check(name, "absent", "the report was not given the training settings")
    outcome: Outcome = "ok" if done >= wanted else "failed"
    return _check(name, outcome, f"{done:,} of {wanted:,} iterations")


def _complete(inputs: Inputs) -> Check:
    name, curve = "Metrics complete", inputs.curve
    missing = gaps(curve, inputs.setting("train", "log_interval"))
    if missing:
        return _check(name, "failed", "; ".join(missing[:3]))
    rows = f"{len(curve.train):,} rows up to iteration {curve.train[-1].iteration:,}"
    if curve.bad_lines:
        where = ", ".join(curve.bad_lines[:3])
        return _check(name, "warning", f"{rows}; {len(curve.bad_lines)} unreadable: {where}")
    return _check(name, "ok", rows)


def _agree(inputs: Inputs) -> Check:
    """train.json against the metrics that it summarises."""
    train, last = inputs.train, inputs.curve.train[-1]
    valid = [row.loss for row in inputs.curve.valid if row.iteration == train.iteration]
    flops = train.flops_per_token * last.tokens_per_second / 1e12
    pairs: list[tuple[str, object, object]] = [
        ("iteration", train.iteration, last.iteration),
        ("consumed_samples", train.consumed_samples, last.consumed_samples),
        ("consumed_tokens", train.consumed_tokens, last.consumed_tokens),
        ("loss", train.loss, inputs.curve.final_loss),
        ("validation_loss", train.validation_loss, valid[-1] if valid else None),
        ("attempts", train.attempts, len(inputs.attempts)),
    ]
    wrong = [f"{what} {a} in train.json, {b} in the metrics" for what, a, b in pairs if a != b]
    if not math.isclose(flops, last.tflops_per_second, rel_tol=FLOPS_TOLERANCE):
        wrong.append(f"{last.tflops_per_second:.4g} TFLOP/s logged, {flops:.4g} follow")
    if wrong:
        return _check("Totals agree", "failed", "; ".join(wrong[:3]))
    detail = "iterations, samples, tokens, losses, FLOP/s"
    return _check("Totals agree", "ok", detail)


def _checkpoints(found: Sequence[Verified], inputs: Inputs) -> Check:
    name = "Checkpoints verified"
    problems = [verified.problem for verified in found if verified.problem]
    if problems:
        return _check(name, "failed", "; ".join(problems[:3]))
    if not found:
        return _check(name, "failed", "train.json lists no checkpoint")
    if found[-1].summary.iteration != inputs.train.iteration:
        detail = f"the newest is of iteration {found[-1].summary.iteration}"
        return _check(name, "failed", f"{detail}, the run of {inputs.train.iteration}")
    hashed = sum(verified.hashed for verified in found)
    detail = f"{hashed} of {len(found)} hashed in full"
    if hashed < len(found):
        detail += ", the others compared by size"
    if inputs.unlisted:
        detail += f"; not part of the result: {', '.join(inputs.unlisted[:3])}"
    return _check(name, "ok", detail)


def _provenance(inputs: Inputs) -> Check:
    """Each fingerprint against the artefact that it is the fingerprint of."""
    train, samples, data, tokenizer = inputs.train, inputs.samples, inputs.data, inputs.tokenizer
    pairs = [
        ("the samples", train.samples_fingerprint, samples.fingerprint),
        ("the data", train.data_fingerprint, data.fingerprint),
        ("the samples' data", samples.data_fingerprint, data.fingerprint),
        ("the tokenizer", train.tokenizer_fingerprint, tokenizer.fingerprint),
        ("the data's tokenizer", data.tokenizer_fingerprint, tokenizer.fingerprint),
    ]
    wrong = [what for what, a, b in pairs if a != b]
    keys = [values.key for values in inputs.settings if values.stage == "train"]
    if (keys and keys[0] != train.key) or inputs.identity.key != train.key:
        wrong.append("the training settings")
    tuning = inputs.tuning.sha256 if inputs.tuning else None
    if inputs.identity.tuned_sha256 not in (None, tuning):
        wrong.append("the tuned result")
    if wrong:
        return _check("Provenance", "failed", f"{', '.join(wrong)} differ from what was trained on")
    return _check("Provenance", "ok", "samples, data, tokenizer and settings are those trained on")


def _data_files(inputs: Inputs) -> Check:
    """Token files by size, the tokenizer by hash; what is gone was there when it counted."""
    name, paths = "Data in place", inputs.paths
    problems = file_problems(paths.tokenizer.parent, inputs.tokenizer.files, hashed=True)
    problems += file_problems(paths.data.parent, inputs.data.files, hashed=False)
    gone = [problem for problem in problems if problem.endswith("missing")]
    if len(problems) > len(gone):
        return _check(name, "failed", next(p for p in problems if p not in gone))
    if gone:
        return _check(name, "warning", "; ".join(gone[:3]))
    return _check(name, "ok", "token files compared by size, tokenizer hashed")


def _learnt(headline: Headline) -> Check:
    name, loss, entropy = "Learnt", headline.validation_loss, headline.unigram_entropy
    if loss is None:
        return _check(name, "absent", "the run has no validation")
    compared = f"validation loss {loss:.3f}, unigram entropy of the text {entropy:.3f}"
    if loss < entropy:
        return _check(name, "ok", f"{compared}: more than token frequencies")
    return _check(name, "warning", f"{compared}: no more than token frequencies")


def _replays(inputs: Inputs) -> Check:
    name = "Restarts"
    twice, differ = replay_differences(inputs.curve)
    restarts = max(len(inputs.attempts) - 1, 0)
    if differ:
        detail = f"{len(differ)} of {twice} rows run again differ, first at iteration {differ[0]}"
        return _check(name, "warning", detail)
    if not restarts:
        return _check(name, "ok", "none")
    if any(a.last_iteration < b.last_iteration for b, a in pairwise(inputs.attempts)):
        return _check(name, "warning", f"{restarts}; an attempt ended before the one before it")
    again = f", {twice} rows run again with bitwise equal losses" if twice else ""
    return _check(name, "ok", f"{restarts}{again}")


def _tuned(inputs: Inputs, headline: Headline) -> Check:
    name, used = "Tuned GEMMs", inputs.train.tuned
    if used is None:
        if headline.tuning is not None and headline.tuning.improved_problems:
            return _check(name, "warning", "a tuned result exists, the run did not use it")
        return _check(name, "absent", "trained without tuning")
    if inputs.tuning is not None and inputs.tuning.newer:
        detail = "tuned again since: the experiment's result is not the one that this run uses"
        return _check(name, "warning", detail)
    calls = f"{used.hits:,} calls tuned, {used.defaults:,} with the default kernel"
    if used.misses or used.rejections:
        missed = f"{used.misses:,} unknown, {used.rejections:,} rejected"
        return _check(name, "warning", f"{calls}, {missed}")
    return _check(name, "ok", calls)


def _steps(headline: Headline) -> Iterator[Check]:
    """Whole steps speak up only where they contradict the times of the single kernels."""
    steps = headline.tuning.steps if headline.tuning else None
    ratio = steps.contestants[TUNED].ratio if steps else None
    if ratio is not None and ratio.significant and ratio.median > 1:
        detail = f"with the tuned kernels whole steps were {ratio.median - 1:.1%} slower"
        yield _check("Whole steps", "warning", detail)


def _export(inputs: Inputs) -> Check:
    name = "Export"
    if inputs.export is None:
        return _check(name, "absent", "not exported")
    content = inputs.export.content.get("files")
    if not isinstance(content, dict):
        return _check(name, "warning", "its manifest lists no files")
    records = {str(path): FileRecord.model_validate(record) for path, record in content.items()}
    problems = file_problems(inputs.export.directory, records, hashed=False)
    if problems:
        return _check(name, "failed", problems[0])
    return _check(name, "ok", f"{len(records)} files in place")


def _evaluation(inputs: Inputs) -> Iterator[Check]:
    """Shown where there is one."""
    name, found = "Evaluation", inputs.evaluation
    if found is None:
        return
    exported = inputs.paths.export
    if (found.experiment, found.key) != (inputs.train.experiment, inputs.train.key):
        yield _check(name, "failed", f"eval.json is of {found.experiment} {found.key}")
    elif exported is None or found.export_sha256 != inputs.read[exported].sha256:
        yield _check(name, "warning", "eval.json is of another export than the one that is there")
    else:
        yield _check(name, "ok", f"{found.tokens:,} tokens predicted by the exported weights")


def _ab(inputs: Inputs) -> Iterator[Check]:
    """Shown where there is one."""
    name, found = "Tuned against default", inputs.ab
    if found is None:
        return
    if (found.experiment, found.key) != (inputs.train.experiment, inputs.train.key):
        yield _check(name, "failed", f"ab.json is of {found.experiment} {found.key}")
    elif found.tuned_sha256 != inputs.identity.tuned_sha256:
        detail = "ab.json compares other tuned kernels than those of this run"
        yield _check(name, "warning", detail)
    elif found.losses.agree is False:
        yield _check(name, "warning", found.losses.in_words)
    else:
        yield _check(name, "warning" if found.outcome == "slower" else "ok", found.in_words)


def _noted(inputs: Inputs, headline: Headline) -> Iterator[Check]:
    if inputs.train.environment.code_dirty:
        detail = "trained from a checkout with uncommitted changes: its commit does not say all"
        yield _check("Code", "warning", detail)
    overflows = headline.skipped_iterations - headline.skipped_batches
    if overflows:
        yield _check("Optimizer", "warning", f"{overflows:,} steps skipped for an overflow")
    for warning in inputs.train.warnings:
        yield _check("Training", "warning", warning)
