"""What is asked of the evaluation of an exported model."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from primus.config import text_files
from primus.config.checks.fault import Context, Fault


def windows(s: Any, _: Context) -> Iterator[Fault]:
    """A window is no longer than the model's positions, and windows leave no gap."""
    length, how = s.evaluation.max_length or s.seq_length, s.evaluation
    if how.max_length and how.max_length > s.max_position_embeddings:
        why = f"is above max_position_embeddings {s.max_position_embeddings}"
        yield Fault("evaluation.max_length", why, f"write at most {s.max_position_embeddings}")
    if how.stride and how.stride > length:
        why = f"is above the {length} tokens of a window, so that tokens would be left out"
        yield Fault("evaluation.stride", why, f"write at most {length}, or null")


def text(s: Any, context: Context) -> Iterator[Fault]:
    """There is text to predict, where an evaluation is asked for."""
    wanted = "evaluate" in context.stages
    for number, pattern in enumerate(s.evaluation.texts):
        for why, fix in text_files.mistakes(pattern, context.root, wanted):
            yield Fault(f"evaluation.texts.{number}", why, fix)
    _, validation, _ = (float(share) for share in s.split.split(","))
    if wanted and not s.evaluation.texts and validation == 0:
        why = f"is empty, and split {s.split} leaves nothing to validate on"
        yield Fault("evaluation.texts", why, "name text files, or write a second share above 0")


def tasks(s: Any, context: Context) -> Iterator[Fault]:
    """lm-evaluation-harness, and the tasks of one's own, are there where they are asked for."""
    how = s.evaluation
    path = how.lm_eval_include_path
    if path is not None:
        for why, fix in text_files.mistakes(path, context.root, must_exist=False):
            yield Fault("evaluation.lm_eval_include_path", why, fix)
    if "evaluate" not in context.stages or not how.lm_eval_tasks:
        return
    if find_spec("lm_eval") is None:
        yield Fault(
            "evaluation.lm_eval_tasks",
            "asks for lm-evaluation-harness, which is not installed",
            "pip install -e '.[lm-eval]', or leave it empty",
        )
    if path is None:
        return
    if not (context.root / path).is_dir():
        fix = "name a directory; relative paths start at the root"
        yield Fault("evaluation.lm_eval_include_path", "is no directory", fix)
    for name in text_files.below(path, context.root):
        if "{" in name or "}" in name:
            # Snakemake takes braces in the path of an input for a wildcard.
            why = f"holds {name}, which has a brace in its name"
            yield Fault("evaluation.lm_eval_include_path", why, "rename the file")
